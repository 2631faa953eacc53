"""The stream: chunks of weights in the order of use, some pinned, the rest read ahead.

A pass uses every chunk once, in the same order as the pass before, so what comes next is known.
Reader threads fill a bounded number of buffers with it while the cores compute. Which chunks are
pinned is fixed: under such a cyclic scan a cache that keeps the last used ones never hits. They
are spread evenly over the pass, so that the disk stays busy while pinned chunks are computed.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.files import DirectFiles, page_buffer
from numpy_bloom.weights.shared import SharedPages

READERS = 3
"""Reader threads: enough requests in flight to keep an NVMe disk busy."""

BUFFERS = 6
"""Chunks that may be in memory at once besides the pinned ones: being read, ready, in use."""

GOLDEN = 0.6180339887498949
"""Multiples of the golden ratio, modulo 1, fill [0, 1) evenly however many are taken."""


@dataclass(frozen=True)
class Chunk:
    """`nbytes` bytes of a file from `offset`, read from disk in one piece."""

    path: Path
    offset: int
    nbytes: int


class _Read:
    """One chunk on its way through a buffer: being read, then ready, then in use."""

    def __init__(self, number: int, buffer: memoryview) -> None:
        self.number = number
        self.buffer = buffer
        self.content = buffer[:0]
        self.errors: list[Exception] = []  # one at most
        self.done = False
        self.wanted = True  # False: to be forgotten as soon as it is done
        self.in_use = False


class Stream:
    """Hands out chunks by number, and guesses that the one after it is asked for next.

    `get` and `release` may be called from any thread, but one pass at a time sets the order.

    Args:
        chunks: all chunks of a model, in the order of a pass.
        files: to read them from.
        shared: whether other processes are to see pinned chunks, where the platform lets them.

    Attributes:
        pages: where pinned chunks lie, if others can see them.
        nbytes: of all chunks.
        buffer_bytes: what read-ahead takes if not all of them are pinned.
        bytes_pinned: of chunks that are held in memory.
        bytes_read: of chunks and parts read from disk and handed out so far.
    """

    def __init__(
        self, chunks: Sequence[Chunk], files: DirectFiles, *, shared: bool = False
    ) -> None:
        self.chunks = chunks
        # The order in which they are pinned: whatever is pinned lies at the beginning of `pages`.
        self._order = sorted(range(len(chunks)), key=lambda number: number * GOLDEN % 1)
        sizes = {number: chunks[number].nbytes for number in self._order}
        self.pages = SharedPages.make(sizes) if shared else None
        self.nbytes = sum(chunk.nbytes for chunk in chunks)
        self.buffer_bytes = BUFFERS * max(chunk.nbytes for chunk in chunks)
        self.bytes_pinned = 0
        self.bytes_read = 0
        self._files = files
        self._taking = threading.Lock()  # two threads would for ever undo each other's order
        self._lock = threading.RLock()  # guards all below
        # Ctrl-C may come while Condition takes its lock, but not while the interpreter takes it:
        # hence `with self._lock`, not `with self._changed`.
        self._changed = threading.Condition(self._lock)
        self._pinned: dict[int, memoryview] = {}
        self._kept: dict[int, dict[Any, Any]] = {}
        self._threads: list[threading.Thread] = []
        self._buffers: list[memoryview] = []
        self._reads: list[_Read] = []  # in the order of use; each owns its buffer
        self._next = 0  # the chunk to be read ahead next
        self._closed = False

    def get(self, number: int) -> memoryview:
        """The bytes of a chunk. They stay valid until it is released.

        Raises:
            NumpyBloomError: its file cannot be read, or the stream was closed.
        """
        content = self._pinned.get(number)
        return self._take(number) if content is None else content

    def _take(self, number: int) -> memoryview:
        """Wait for a chunk to be read."""
        with self._taking, self._lock:
            self._start_readers()
            while (read := self._find(number)) is None or not read.done:
                if read is None:  # not the order that was guessed: read from here on
                    self._forget_until(None)
                    self._next = number
                    self._changed.notify_all()
                self._wait()
            self._forget_until(read)
            if read.errors:
                self._forget_until(None)  # what is ahead may have failed as well
                raise read.errors.pop()
            read.in_use = True
            self.bytes_read += self.chunks[number].nbytes
            return read.content

    def read(self, part: Chunk, within: int | None) -> memoryview:
        """Some bytes, out of order.

        Args:
            part: which ones.
            within: the number of the chunk that they are part of, if it is one of this stream.

        Raises:
            NumpyBloomError: their file cannot be read, or the stream was closed.
        """
        self._check_open()
        content = None if within is None else self._pinned.get(within)
        if content is not None and within is not None:
            skip = part.offset - self.chunks[within].offset
            return content[skip : skip + part.nbytes]
        content = self._read_apart(part)
        with self._lock:
            self.bytes_read += part.nbytes
        return content

    def release(self, number: int | None = None) -> None:
        """A chunk that was handed out (None: every one) is no longer needed."""
        with self._lock:
            self._reads = [
                read for read in self._reads if not (read.in_use and number in (None, read.number))
            ]
            self._changed.notify_all()

    def kept(self, number: int) -> dict[Any, Any] | None:
        """What its user has made of a pinned chunk's bytes; None if the chunk is not pinned.

        The dict is the user's to fill; it lives until the chunk is pinned no more.
        """
        return self._kept.get(number)

    def _find(self, number: int) -> _Read | None:
        """The read of a chunk that nobody has taken yet."""
        waiting = (read for read in self._reads if read.wanted and not read.in_use)
        return next((read for read in waiting if read.number == number), None)

    def _forget_until(self, read: _Read | None) -> None:
        """Give up what was read ahead but passed over: all before `read`, or all there is."""
        for other in list(self._reads):
            if other is read:
                break
            if not other.in_use:
                other.wanted = False
                if other.done:
                    self._reads.remove(other)

    def _wait(self) -> None:
        """Wait for a change."""
        self._changed.wait()
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise NumpyBloomError("the model was closed; load it again")

    # --- reader threads ---------------------------------------------------------------------------

    def fill(self) -> float:
        """Read ahead until all buffers are full.

        Returns:
            Bytes read per second. 0 if there was nothing to read.

        Raises:
            NumpyBloomError: a file cannot be read, or the stream was closed.
        """
        with self._lock:
            start = time.perf_counter()
            self._forget_until(None)
            self._next = 0
            self._start_readers()
            self._changed.notify_all()
            most = min(BUFFERS, len(self.chunks) - len(self._pinned))
            while len(self._reads) < most or not all(read.done for read in self._reads):
                self._wait()
            for read in self._reads:
                if read.errors:
                    self._forget_until(None)
                    raise read.errors.pop()
            seconds = time.perf_counter() - start
            return sum(len(read.content) for read in self._reads) / seconds

    def _start_readers(self) -> None:
        self._check_open()
        if not self._buffers:
            self._buffers = [page_buffer(self.buffer_bytes // BUFFERS) for _ in range(BUFFERS)]
        while len(self._threads) < READERS:
            thread = threading.Thread(target=self._serve, name="numpy-bloom-reader", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self) -> None:
        while True:
            with self._lock:
                while not self._closed and (read := self._begin()) is None:
                    self._changed.wait()
                if self._closed:
                    return
            assert read is not None
            chunk = self.chunks[read.number]
            try:
                read.content = self._files.read(chunk.path, chunk.offset, chunk.nbytes, read.buffer)
            except Exception as error:  # handed to whoever asks for the chunk
                read.errors.append(error)
            with self._lock:
                if self._closed:
                    return
                read.done = True
                if not read.wanted:
                    self._reads.remove(read)
                self._changed.notify_all()

    def _begin(self) -> _Read | None:
        """Claim a free buffer for the next chunk that is not pinned, if there are both."""
        owned = [read.buffer for read in self._reads]
        free = next((b for b in self._buffers if not any(b is other for other in owned)), None)
        if free is None or len(self._pinned) == len(self.chunks):
            return None
        while self._next in self._pinned:
            self._next = (self._next + 1) % len(self.chunks)
        if self._find(self._next) is not None:  # once around: everything is there
            return None
        read = _Read(self._next, free)
        self._reads.append(read)
        self._next = (self._next + 1) % len(self.chunks)
        return read

    # --- pinning ----------------------------------------------------------------------------------

    def pin(self, nbytes: int) -> None:
        """Hold as many chunks in memory as fit into `nbytes`, always the same ones first.

        What was read ahead is forgotten, and with it what may have gone wrong then.

        Raises:
            NumpyBloomError: a file cannot be read, or the stream was closed. What was held before
                and fits is held still.
        """
        self._check_open()
        chosen: list[int] = []
        for number in self._order:
            nbytes -= self.chunks[number].nbytes
            if nbytes < 0:
                break
            chosen.append(number)
        kept = {number: self._pinned[number] for number in chosen if number in self._pinned}
        self._hold(kept)
        missing = [number for number in chosen if number not in kept]
        if len(chosen) == len(self.chunks):
            with self._lock:
                self._buffers.clear()  # nothing is read ahead any more
        if not missing:
            return
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  (slow to import)

        total = sum(self.chunks[number].nbytes for number in missing)
        try:
            with ThreadPoolExecutor(READERS) as readers:
                contents = readers.map(self._read_to_pin, missing)
                new = dict(zip(missing, _with_bar(contents, total), strict=True))
            self._hold(kept | new)
        except BaseException:
            self._hold(kept)  # and not what of the others has come
            raise

    def _hold(self, pinned: dict[int, memoryview]) -> None:
        """Pin these chunks and no others, at once, so that no reader sees a part of them."""
        with self._lock:
            self._pinned = pinned
            self._kept = {number: self._kept.get(number, {}) for number in pinned}
            self.bytes_pinned = sum(self.chunks[number].nbytes for number in pinned)
            self._forget_until(None)
            self._next = 0
        if self.pages is not None:
            self.pages.keep(pinned)

    def _read_to_pin(self, number: int) -> memoryview:
        """Read a chunk where it is to stay."""
        chunk = self.chunks[number]
        if self.pages is None:
            return self._read_apart(chunk)
        return self._files.read(chunk.path, chunk.offset, chunk.nbytes, self.pages.buffers[number])

    def _read_apart(self, part: Chunk) -> memoryview:
        """Read bytes into a buffer of their own."""
        return self._files.read(part.path, part.offset, part.nbytes, page_buffer(part.nbytes))

    def close(self) -> None:
        """End the reader threads and give back all memory."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
        # The garbage collector may call this from any thread, one of these included.
        if threading.current_thread() not in self._threads:
            for thread in self._threads:
                thread.join()
        self._reads.clear()
        self._buffers.clear()
        self._pinned.clear()
        self._kept.clear()
        if self.pages is not None:
            self.pages.close()


def _with_bar(contents: Iterable[memoryview], total: int) -> Iterator[memoryview]:
    """The same contents, with a progress bar on a terminal if they take more than a second."""
    from tqdm import tqdm  # noqa: PLC0415  (slow to import)

    with tqdm(
        desc="loading", total=total, unit="B", unit_scale=True, delay=1, leave=False, disable=None
    ) as bar:
        for content in contents:
            bar.update(len(content))
            yield content
