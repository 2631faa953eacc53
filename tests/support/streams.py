"""What the tests of the stream share: one whose reads are watched, held up, and made to fail."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from numpy_bloom.weights.files import DirectFiles
from numpy_bloom.weights.stream import Chunk, Stream
from support.threads import no_deadlock, open_files, thread_names

COUNT = 20
EVERYTHING = 1 << 30


class Source(DirectFiles):
    """Files that tell what is read, and that wait or fail where a test wants it.

    Attributes:
        begun: numbers of the chunks whose reading has begun; -1 for anything else.
        buffers: addresses of the buffers that were read into.
        faults: what reading a chunk raises.
        flowing: reads wait while it is not set.
        on_read: called before each read.
    """

    def __init__(self, chunks: list[Chunk]) -> None:
        super().__init__()
        self._numbers = {(c.path, c.offset, c.nbytes): i for i, c in enumerate(chunks)}
        self._changed = threading.Condition()
        self.begun: list[int] = []
        self.buffers: set[int] = set()
        self.faults: dict[int, Exception] = {}
        self.flowing = threading.Event()
        self.flowing.set()
        self.on_read: Callable[[], None] = lambda: None

    def read(self, path: Path, offset: int, nbytes: int, buffer: memoryview) -> memoryview:
        number = self._numbers.get((path, offset, nbytes), -1)
        self.on_read()
        with self._changed:
            self.begun.append(number)
            self.buffers.add(np.frombuffer(buffer, np.uint8).ctypes.data)
            self._changed.notify_all()
        assert self.flowing.wait(60)
        if number in self.faults:
            raise self.faults[number]
        return super().read(path, offset, nbytes, buffer)

    def wait_for(self, begun: Callable[[list[int]], bool]) -> None:
        """Wait until what has begun is so."""
        with self._changed:
            assert self._changed.wait_for(lambda: begun(self.begun), 60)


class Streamed:
    """A stream over two files, and what its chunks hold."""

    def __init__(self, folder: Path, count: int = COUNT) -> None:
        random = np.random.default_rng(count)
        chunks: list[Chunk] = []
        self.contents: list[bytes] = []
        for file, (rows, columns) in {"a": (7, 300), "b": (3, 1500)}.items():
            content = random.bytes(rows * columns * 2 * count)
            (folder / file).write_bytes(b"head" + content)
            nbytes = rows * columns * 2
            for number in range(count):
                chunks.append(Chunk(folder / file, 4 + nbytes * number, nbytes))
                self.contents.append(content[chunks[-1].offset - 4 :][: chunks[-1].nbytes])
        # The end of the one file and the beginning of the other.
        self.chunks = chunks[count // 2 :][:count]
        self.contents = self.contents[count // 2 :][:count]
        self.source = Source(self.chunks)
        self.stream = Stream(self.chunks, self.source)

    def check(self, number: int) -> None:
        """Take a chunk, look at it, give it back."""
        assert self.stream.get(number) == self.contents[number]
        self.stream.release(number)

    def check_pass(self, numbers: Iterable[int] | None = None) -> None:
        for number in range(len(self.chunks)) if numbers is None else numbers:
            self.check(number)

    def pinned(self) -> set[int]:
        """Numbers of the chunks that a pass does not read."""
        nbytes = self.stream.bytes_pinned
        self.stream.pin(0 if nbytes else self.stream.nbytes)  # forget what was read ahead
        self.stream.pin(nbytes)
        self.source.begun.clear()
        self.check_pass()
        return set(range(len(self.chunks))) - set(self.source.begun)


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Start a thread, and tell what its work returned or raised."""
    result: list[object] = []

    def run() -> None:
        try:
            result.append(work())
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, result


@contextmanager
def opened(folder: Path, count: int = COUNT) -> Iterator[Streamed]:
    """A stream that neither hangs nor leaves threads or files behind."""
    before, streamed = thread_names(), Streamed(folder, count)
    with no_deadlock(60):
        yield streamed
        streamed.stream.close()
        streamed.source.close()
    assert thread_names() == before
    assert open_files(folder) == []
