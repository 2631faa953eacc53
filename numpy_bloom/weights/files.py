"""Reading pieces of files past the page cache.

A model that is larger than memory would only push everything else out of the page cache, and be
pushed out itself before it is read again. `O_DIRECT` (Linux) moves the bytes from disk into our
buffer alone; it wants offsets, lengths and addresses that are multiples of the page size.
"""

import mmap
import os
import threading
from contextlib import suppress
from pathlib import Path

from numpy_bloom.errors import NumpyBloomError, failing_as
from numpy_bloom.weights.manifest import see_verify
from numpy_bloom.weights.safetensors_file import ALIGNMENT

O_DIRECT = getattr(os, "O_DIRECT", 0)


def page_buffer(nbytes: int) -> memoryview:
    """A page-aligned buffer in which any `nbytes` bytes of a file fit, wherever they begin.

    It is in huge pages where the system has some, so that the cores look up fewer addresses. Shared
    mappings, Python's default, seldom get them.
    """
    buffer = mmap.mmap(-1, nbytes + 2 * ALIGNMENT, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        with suppress(OSError):  # a system without them
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(buffer)


class DirectFiles:
    """Files that are opened when they are first read, and stay open."""

    def __init__(self) -> None:
        self._handles: dict[Path, int] = {}
        self._lock = threading.Lock()

    def read(self, path: Path, offset: int, nbytes: int, buffer: memoryview) -> memoryview:
        """Read `nbytes` bytes from `offset` into a `page_buffer`.

        May be called from several threads.

        Returns:
            The part of `buffer` that holds them.

        Raises:
            NumpyBloomError: the file is gone, has become shorter, or cannot be read.
        """
        begin = offset - offset % ALIGNMENT
        skip = offset - begin
        length = -(-(skip + nbytes) // ALIGNMENT) * ALIGNMENT
        with failing_as(f"cannot read {path}"):
            handle = self._open(path)
            count, before = 0, -1
            while before < count < skip + nbytes:  # not further than before: the end of the file
                before = count
                page = count - count % ALIGNMENT
                count = page + os.preadv(handle, [buffer[page:length]], begin + page)
            size = os.fstat(handle).st_size
        if count < skip + nbytes:
            raise NumpyBloomError(
                f"{path} ends at byte {size:,}, expected {offset + nbytes:,} or more"
                f"{see_verify(path.parent)}"
            )
        return buffer[skip : skip + nbytes]

    def _open(self, path: Path) -> int:
        with self._lock:
            if path not in self._handles:
                self._handles[path] = _open_direct(path)
            return self._handles[path]

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for handle in self._handles.values():
                os.close(handle)
            self._handles.clear()


def _open_direct(path: Path) -> int:
    """Open past the page cache, or plainly where platform or file system cannot."""
    if O_DIRECT:
        # Some file systems refuse to open, some only to read; what else is wrong with the file is
        # told by the plain attempt.
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY | O_DIRECT)
            try:
                os.preadv(handle, [page_buffer(0)], 0)
            except OSError:
                os.close(handle)
                raise
            return handle
    return os.open(path, os.O_RDONLY)
