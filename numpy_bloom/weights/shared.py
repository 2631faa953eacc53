"""Memory that several processes see, where the platform has files without a name (Linux)."""

import mmap
import os
import weakref
from collections.abc import Container, Mapping
from contextlib import suppress
from itertools import accumulate, pairwise

from numpy_bloom.weights.safetensors_file import ALIGNMENT


class SharedMemory:
    """A file without a name, of zeros, in memory; a page takes memory once it is written to.

    Args:
        handle: of a file that another process has made. Default: a new one.
        nbytes: of a new one.

    Attributes:
        handle: to be passed on to other processes.
        content: all of it.

    Raises:
        OSError: the system refuses.
    """

    def __init__(self, handle: int | None = None, nbytes: int = 0) -> None:
        if handle is None:
            handle = os.memfd_create("numpy-bloom")
            os.ftruncate(handle, nbytes)
        self.handle = handle
        self._close_handle = weakref.finalize(self, os.close, handle)
        self._owner = os.getpid()
        self._map = mmap.mmap(handle, 0)
        with suppress(OSError):  # a system without them
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.content = memoryview(self._map)

    def give_back(self, begin: int) -> None:
        """Give back the memory from a byte on, which is zeros again then.

        A process that was forked from its maker leaves it alone: the maker needs it still.
        """
        begin = -(-begin // ALIGNMENT) * ALIGNMENT
        if begin < len(self.content) and os.getpid() == self._owner:
            self._map.madvise(mmap.MADV_REMOVE, begin)

    def close(self) -> None:
        """Let go of it. Its memory is free when nobody has a part of `content` any more."""
        self._close_handle()
        self.content = memoryview(b"")
        with suppress(BufferError):  # somebody has
            self._map.close()


class SharedPages:
    """A `page_buffer` for each chunk, one behind the other, in memory that other processes see.

    Args:
        sizes: bytes of the chunks by number, in the order in which they are pinned: what is in use
            is then in one piece.

    Attributes:
        memory: all of it.
        buffers: of the chunks, by number.
        begins: where they lie in `memory`, by number.
    """

    def __init__(self, sizes: Mapping[int, int]) -> None:
        padded = (-(-size // ALIGNMENT) * ALIGNMENT + 2 * ALIGNMENT for size in sizes.values())
        places = list(accumulate(padded, initial=0))
        self.memory = SharedMemory(nbytes=places[-1])
        pieces = [self.memory.content[begin:end] for begin, end in pairwise(places)]
        self.buffers = dict(zip(sizes, pieces, strict=True))
        self.begins = dict(zip(sizes, places, strict=False))

    @classmethod
    def make(cls, sizes: Mapping[int, int]) -> "SharedPages | None":
        """None where the platform has no such memory."""
        if not hasattr(os, "memfd_create"):
            return None
        try:
            return cls(sizes)
        except OSError:  # an old kernel, or a sandbox
            return None

    def keep(self, numbers: Container[int]) -> None:
        """Give back the memory of all chunks behind these, which are the first ones."""
        others = (begin for number, begin in self.begins.items() if number not in numbers)
        self.memory.give_back(next(others, len(self.memory.content)))

    def close(self) -> None:
        """Give all of it back."""
        self.buffers.clear()
        self.memory.close()
