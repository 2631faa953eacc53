"""An opened model folder as the model sees it: vectors at once, matrices when their turn comes."""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from numpy_bloom.weights import formats
from numpy_bloom.weights.budget import keep_freed_memory
from numpy_bloom.weights.dtypes import Floats, widen
from numpy_bloom.weights.files import DirectFiles
from numpy_bloom.weights.folder import EMBEDDINGS, LM_HEAD, Folder
from numpy_bloom.weights.formats import Format
from numpy_bloom.weights.processes import PROCESS_BYTES, Cut, Processes, exchange_bytes
from numpy_bloom.weights.safetensors_file import ALIGNMENT, StoredArray
from numpy_bloom.weights.shared import SharedPages
from numpy_bloom.weights.stored_matrix import StoredMatrix, read_small
from numpy_bloom.weights.stream import Chunk, Stream
from numpy_bloom.weights.team import Team, one_blas_thread

CHUNK_BYTES = 16 << 20
"""Most that is read at once (or one tile, if that is larger). Disks want large reads: matrices that
are smaller share one."""

NOT_MULTIPLIED = -1
"""In place of a number, if nothing is multiplied by a matrix."""

WORTH_PROCESSES = 200 << 20
"""Bytes of weights from which on processes help: they start in the time of some such passes."""


class WeightStore:
    """The arrays of a converted folder, and the threads and buffers to work with them.

    Args:
        folder: an opened folder.
        threads: how many compute.

    Attributes:
        stream: the chunks of all matrices that a pass multiplies by.
        team: the threads.
        vector_bytes: of small arrays that were read.
    """

    def __init__(self, folder: Folder, threads: int) -> None:
        keep_freed_memory()
        self.folder = folder
        self.team = Team(threads)
        self.vector_bytes = 0
        self._files = DirectFiles()
        self._matrices: dict[StoredArray, Matrix] = {}
        self._processes: Processes | None = None
        chunks: list[Chunk] = []
        self._tiles_of_chunk: Counter[int] = Counter()
        self._in_use: dict[int, memoryview] = {}
        self._tiles_left: Counter[int] = Counter()  # of the chunks in use
        self._lock = threading.Lock()
        for stored in _pass_order(folder):
            format = self._format(stored)
            parts = []
            for rows in _readable_ranges(format):
                before = len(chunks)
                _extend(chunks, _bytes_of(stored.array, format, rows))
                parts.append(Part(len(chunks) - 1, rows, len(chunks) > before))
                self._tiles_of_chunk[len(chunks) - 1] += len(rows[:: format.tile_rows])
            number = len(self._matrices)
            self._matrices[stored.array] = Matrix(stored.array, format, parts, self, number)
        nbytes = sum(chunk.nbytes for chunk in chunks)
        program = sys.executable and not getattr(sys, "frozen", False)
        self._may_help = threads > 1 and nbytes >= WORTH_PROCESSES and bool(program)
        self.stream = Stream(chunks, self._files, shared=self._may_help)

    def _format(self, stored: StoredMatrix) -> Format:
        self.vector_bytes += sum(array.nbytes for array in stored.beside.values())
        return stored.opened()

    def vector(self, file: str, name: str) -> Floats:
        """Read a small array as float32.

        Raises:
            NumpyBloomError: it cannot be read, or holds NaN or inf.
        """
        array = self.folder.vectors[file][name]
        values = widen(read_small(array), array.dtype)
        self.vector_bytes += values.nbytes
        return values

    def matrix(self, file: str, name: str) -> "Matrix":
        """A handle on a big array."""
        stored = self.folder.matrices[file][name]
        if stored.array not in self._matrices:  # an embedding that is no head
            return Matrix(stored.array, self._format(stored), [], self, NOT_MULTIPLIED)
        return self._matrices[stored.array]

    def scratch_bytes(self, tokens: int) -> int:
        """Memory that one thread needs to multiply so many tokens by any of the matrices."""
        return max(matrix.format.scratch_bytes(tokens) for matrix in self._matrices.values())

    @property
    def process_bytes(self) -> int:
        """What processes that help take beside the weights; 0 if there are none to be."""
        if not self._may_help:
            return 0
        for_x, for_y = exchange_bytes([matrix.shape for matrix in self._matrices.values()])
        each = PROCESS_BYTES + self.vector_bytes + for_y  # some have arrays beside matrices
        return for_x + (self.team.threads - 1) * each

    @property
    def processes(self) -> Processes | None:
        """Those that are ready to help, if all weights are in memory."""
        processes = self._processes
        if processes is None or self.stream.bytes_pinned < self.stream.nbytes:
            return None
        return processes if processes.ready else None

    def wait_for_processes(self) -> None:
        """Wait until those that have been started can help."""
        if self._processes is not None:
            self._processes.wait()

    def computing(self) -> AbstractContextManager[None]:
        """Within it BLAS uses one thread, so that the team's threads do not get in its way."""
        return one_blas_thread()

    def pin(self, nbytes: int) -> None:
        """Hold as many weights in memory as fit into `nbytes`, see `Stream.pin`.

        Processes help to compute while all of them fit, and the processes beside them.
        """
        self.stream.pin(nbytes)
        pages, room = self.stream.pages, nbytes - self.stream.nbytes
        if pages is None or not 0 < self.process_bytes <= room:
            self._end_processes()
        elif self._processes is None:
            layout = [(matrix.format, matrix.cuts(pages)) for matrix in self._matrices.values()]
            try:
                self._processes = Processes(self.team.threads - 1, pages.memory, layout)
            except OSError:  # threads do without, and it would fail again
                self._may_help = False

    def _end_processes(self) -> None:
        if self._processes is not None:
            self._processes.close()
        self._processes = None

    def chunk(self, number: int) -> memoryview:
        """Bytes of a chunk that is not pinned, valid until all its tiles are done, or `release` is
        called.

        Raises:
            NumpyBloomError: it cannot be read.
        """
        if number not in self._in_use:
            self._in_use[number] = self.stream.get(number)
            self._tiles_left[number] = self._tiles_of_chunk[number]
        return self._in_use[number]

    def tile_done(self, number: int) -> None:
        """One tile of a chunk is not needed any more."""
        with self._lock:
            self._tiles_left[number] -= 1
            last = self._tiles_left[number] == 0
        if last:
            self._in_use.pop(number, None)
            self.stream.release(number)

    def release(self) -> None:
        """No tile of any chunk is needed any more, done or not."""
        self._in_use.clear()
        self.stream.release()

    def close(self) -> None:
        """End all threads and processes, close all files, give back all memory."""
        self._end_processes()
        self.stream.close()
        self.team.close()
        self._files.close()


def _pass_order(folder: Folder) -> list[StoredMatrix]:
    """The matrices that a pass multiplies by, in order: the blocks', then the head."""
    files = [file for file in folder.matrices if file not in (EMBEDDINGS, LM_HEAD)]
    heads = [] if folder.head is None else [folder.head]
    return [matrix for file in files + heads for matrix in folder.matrices[file].values()]


def _readable_ranges(format: Format) -> list[range]:
    """A matrix's rows in ranges of whole tiles that can be read at once."""
    rows, columns = format.shape
    step = max(1, CHUNK_BYTES // format.nbytes(format.tile_rows, columns)) * format.tile_rows
    return [range(start, min(start + step, rows)) for start in range(0, rows, step)]


def _bytes_of(array: StoredArray, format: Format, rows: range) -> Chunk:
    """Where some rows lie, which begin with a block."""
    begin, end = (format.nbytes(row, format.shape[1]) for row in (rows.start, rows.stop))
    return Chunk(array.path, array.offset + begin, end - begin)


def _extend(chunks: list[Chunk], part: Chunk) -> None:
    """Read a part together with the last chunk, if that is not too much, or apart."""
    if chunks and chunks[-1].path == part.path:
        last = chunks[-1]
        together = part.offset + part.nbytes - last.offset
        if last.nbytes < together <= CHUNK_BYTES:
            chunks[-1] = replace(last, nbytes=together)
            return
    chunks.append(part)


class Part(NamedTuple):
    """Some rows of a matrix, the number of the chunk in which they are, and whether they are the
    first in it: it may hold several parts, of several matrices.
    """

    chunk: int
    rows: range
    begins: bool


class Tile:
    """Some rows of a matrix, for one thread to work on.

    Attributes:
        rows: which ones.
        stored: their numbers, as the matrix's format has them.
        done: to be called when they are not needed any more.
    """

    __slots__ = ("done", "rows", "stored")

    def __init__(self, rows: slice, stored: formats.Tile, done: Callable[[], None]) -> None:
        self.rows = rows
        self.stored = stored
        self.done = done


def _nothing() -> None:
    """Nobody waits for the end of a tile that is pinned."""


class Matrix:
    """A handle on a big matrix (outputs, inputs), whose rows lie in memory or on disk.

    Attributes:
        shape: (outputs, inputs).
        format: how its numbers are stored.
        team: the threads to work on it.
        number: its place among the matrices that a pass multiplies by, or `NOT_MULTIPLIED`.
    """

    def __init__(
        self,
        array: StoredArray,
        format: Format,
        parts: Sequence[Part],
        store: WeightStore,
        number: int,
    ) -> None:
        self.shape = format.shape
        self.format = format
        self.team = store.team
        self.number = number
        self._array = array
        self._parts = parts
        self._store = store

    def tiles(self) -> Iterator[Tile]:
        """All rows in order, a tile at a time, each to be marked as done.

        Raises:
            NumpyBloomError: they cannot be read.
        """
        stream = self._store.stream
        for part in self._parts:
            kept = stream.kept(part.chunk)
            if kept is None:
                done = partial(self._store.tile_done, part.chunk)
                yield from self._cut(part, self._store.chunk(part.chunk), done)
            else:
                if part.begins:
                    stream.on_chunk(stream.chunks[part.chunk])
                place = self, part.rows.start
                if place not in kept:
                    content = stream.pinned(part.chunk)
                    kept[place] = list(self._cut(part, content, _nothing))
                yield from kept[place]

    def _cut(self, part: Part, content: memoryview, done: Callable[[], None]) -> Iterator[Tile]:
        """The tiles of one part, whose chunk's bytes are at hand."""
        for rows, skip, nbytes in self._cuts(part):
            stored = np.frombuffer(content, np.uint8, nbytes, skip)
            yield Tile(rows, self.format.tile(stored, rows), done)

    def _cuts(self, part: Part) -> Iterator[Cut]:
        """Where the tiles of one part lie in its chunk."""
        format, chunk = self.format, self._store.stream.chunks[part.chunk]
        for start in part.rows[:: format.tile_rows]:
            rows = range(start, min(start + format.tile_rows, part.rows.stop))
            tile = _bytes_of(self._array, format, rows)
            yield Cut(slice(rows.start, rows.stop), tile.offset - chunk.offset, tile.nbytes)

    def cuts(self, pages: SharedPages) -> list[Cut]:
        """Where all tiles lie, in order, in the memory that other processes see."""
        cuts = []
        for part in self._parts:
            chunk = self._store.stream.chunks[part.chunk]
            begin = pages.begins[part.chunk] + chunk.offset % ALIGNMENT  # see `DirectFiles.read`
            cuts += [cut._replace(begin=begin + cut.begin) for cut in self._cuts(part)]
        return cuts

    @property
    def processes(self) -> Processes | None:
        """Those that are ready to help, if it is in memory."""
        return self._store.processes

    def release(self) -> None:
        """No tile of it is needed any more, done or not."""
        self._store.release()

    def row(self, number: int) -> Floats:
        """One row (inputs,) as float32: from memory if its chunk is pinned, else from disk."""
        format = self.format
        within = None
        if self._parts:  # all have as many rows as the first, but for the last one
            within = self._parts[number // len(self._parts[0].rows)].chunk
        start = number - number % format.block_rows
        rows = range(start, min(start + format.block_rows, format.shape[0]))
        content = self._store.stream.read(_bytes_of(self._array, format, rows), within)
        tile = format.tile(np.frombuffer(content, np.uint8), slice(rows.start, rows.stop))
        row: Floats = format.widen(tile)[number - start]
        return row
