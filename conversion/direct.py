"""Writing long files past the page cache.

Nobody reads a converted file soon, and to fill the page cache with it takes processor time: 2 s for
a gibibyte which the disk itself took in 0.5 s (see docs/performance.md). `O_DIRECT` (Linux) hands
page-aligned buffers to the disk as they are.
"""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from numpy_bloom.weights.files import O_DIRECT, page_buffer

BUFFER_BYTES = 4 << 20
BUFFERS = 4


class Written(NamedTuple):
    """A file whose last bytes may still be on their way.

    Attributes:
        handle: of the open file.
        size: in bytes.
        writes: are over when the system has all of them.
        sha256: their checksum, when it is known.
    """

    handle: int
    size: int
    writes: list[Future[None]]
    sha256: Future[str]


@dataclass
class Buffer:
    """Bytes, and what is done with them."""

    content: memoryview
    uses: list[Future[None]] = field(default_factory=list)


class DirectWriter:
    """Two threads, one to write and one for checksums, and the buffers that they work on."""

    def __init__(self) -> None:
        contents = [page_buffer(BUFFER_BYTES)[:BUFFER_BYTES] for _ in range(BUFFERS)]
        self._buffers = cycle([Buffer(content) for content in contents])
        self._writer, self._hasher = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def close(self) -> None:
        """End the threads when their work is done."""
        self._writer.shutdown()
        self._hasher.shutdown()

    def write(self, path: Path, pieces: Iterable[memoryview]) -> Written:
        """Write a new file, from its beginning to its end.

        Args:
            path: of the file.
            pieces: of bytes, of any size; each is copied before the next one is asked for.

        Raises:
            OSError: it cannot be written. What fails last is raised by `writes`.
        """
        handle = _open_direct(path)
        checksum, size = hashlib.sha256(), 0
        writes: list[Future[None]] = []
        try:
            for buffer, content in self._filled(pieces):
                writes.append(self._writer.submit(_write, handle, content))
                buffer.uses = [writes[-1], self._hasher.submit(checksum.update, content)]
                size += content.nbytes
                if len(writes) > BUFFERS:
                    writes[-BUFFERS - 1].result()  # over by now, as its buffer was free; or failed
        except BaseException:
            wait(writes)
            os.close(handle)
            raise
        return Written(handle, size, writes, self._hasher.submit(checksum.hexdigest))

    def _filled(self, pieces: Iterable[memoryview]) -> Iterator[tuple[Buffer, memoryview]]:
        """The pieces, one after the other in buffers that are full but for the last one."""
        buffer, used = self._next(), 0
        for piece in pieces:
            begin = 0
            while begin < piece.nbytes:
                count = min(piece.nbytes - begin, buffer.content.nbytes - used)
                buffer.content[used : used + count] = piece[begin : begin + count]
                begin, used = begin + count, used + count
                if used == buffer.content.nbytes:
                    yield buffer, buffer.content
                    buffer, used = self._next(), 0
        yield buffer, buffer.content[:used]

    def _next(self) -> Buffer:
        """A buffer that nobody uses any more."""
        buffer = next(self._buffers)
        wait(buffer.uses)
        return buffer


def _open_direct(path: Path) -> int:
    """A new file, written past the page cache where platform and file system can."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    if O_DIRECT:
        with suppress(OSError):  # what else is wrong is told by the plain attempt
            return os.open(path, flags | O_DIRECT, 0o666)
    return os.open(path, flags, 0o666)


def _write(handle: int, content: memoryview) -> None:
    """Write at the end of a file.

    Through the page cache goes what the system does not take past it: the last bytes, if they do
    not fill a page, and all where a file system cannot.
    """
    while content:
        flags = fcntl.fcntl(handle, fcntl.F_GETFL)
        try:
            content = content[os.write(handle, content) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not flags & O_DIRECT:
                raise
            fcntl.fcntl(handle, fcntl.F_SETFL, flags & ~O_DIRECT)
