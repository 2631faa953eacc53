"""An opened model folder as the model sees it: vectors at once, matrices when their turn comes."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights import formats
from numpy_bloom.weights.dtypes import FLOATING, Floats, Stored, all_finite, widen
from numpy_bloom.weights.files import DirectFiles
from numpy_bloom.weights.folder import EMBEDDINGS, LM_HEAD, Folder, StoredMatrix
from numpy_bloom.weights.formats import Format
from numpy_bloom.weights.safetensors_file import StoredArray, read_stored
from numpy_bloom.weights.stream import Chunk, Stream
from numpy_bloom.weights.team import Team

CHUNK_BYTES = 16 << 20
"""Most that is read of a matrix at once (or one tile, if that is larger)."""


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
        self.folder = folder
        self.team = Team(threads)
        self.vector_bytes = 0
        self._files = DirectFiles()
        self._blas = ThreadpoolController()
        self._matrices: dict[StoredArray, Matrix] = {}
        chunks: list[Chunk] = []
        for stored in _pass_order(folder):
            format = self._format(stored)
            pieces = _chunks(stored.array, format)
            numbers = range(len(chunks), len(chunks) + len(pieces))
            self._matrices[stored.array] = Matrix(stored.array, format, numbers, self)
            chunks += pieces
        self.stream = Stream(chunks, self._files)

    def _format(self, stored: StoredMatrix) -> Format:
        beside = {suffix: self._read_small(array) for suffix, array in stored.beside.items()}
        self.vector_bytes += sum(values.nbytes for values in beside.values())
        return stored.format(stored.shape, beside)

    def _read_small(self, array: StoredArray) -> Stored:
        values = read_stored(array)
        if array.dtype in FLOATING and not all_finite(values, array.dtype):
            raise NumpyBloomError(f"{array} holds NaN or inf; convert the checkpoint again")
        return values

    def vector(self, file: str, name: str) -> Floats:
        """Read a small array as float32.

        Raises:
            NumpyBloomError: it cannot be read, or holds NaN or inf.
        """
        array = self.folder.vectors[file][name]
        values = widen(self._read_small(array), array.dtype)
        self.vector_bytes += values.nbytes
        return values

    def matrix(self, file: str, name: str) -> "Matrix":
        """A handle on a big array."""
        stored = self.folder.matrices[file][name]
        if stored.array not in self._matrices:  # an untied embedding is multiplied by nothing
            return Matrix(stored.array, self._format(stored), range(0), self)
        return self._matrices[stored.array]

    def scratch_bytes(self, tokens: int) -> int:
        """Memory that one thread needs to multiply so many tokens by any of the matrices."""
        return max(matrix.format.scratch_bytes(tokens) for matrix in self._matrices.values())

    def computing(self) -> AbstractContextManager[Any]:
        """Within it BLAS uses one thread, so that the team's threads do not get in its way."""
        limit: AbstractContextManager[Any] = self._blas.limit(limits=1, user_api="blas")
        return limit

    def close(self) -> None:
        """End all threads, close all files, give back all memory."""
        self.stream.close()
        self.team.close()
        self._files.close()


def _pass_order(folder: Folder) -> list[StoredMatrix]:
    """The matrices that a pass multiplies by, in order: the blocks', then the head."""
    head = LM_HEAD if LM_HEAD in folder.matrices else EMBEDDINGS
    files = [file for file in folder.matrices if file not in (EMBEDDINGS, LM_HEAD)]
    return [matrix for file in [*files, head] for matrix in folder.matrices[file].values()]


def _chunks(array: StoredArray, format: Format) -> list[Chunk]:
    """Cut a matrix into chunks of whole tiles."""
    rows, columns = format.shape
    tile = format.tile_rows
    step = max(1, CHUNK_BYTES // format.nbytes(tile, columns)) * tile
    starts = range(0, rows, step)
    return [_chunk(array, format, range(start, min(start + step, rows))) for start in starts]


def _chunk(array: StoredArray, format: Format, rows: range) -> Chunk:
    columns = format.shape[1]
    begin, end = format.nbytes(rows.start, columns), format.nbytes(rows.stop, columns)
    return Chunk(array, rows, array.offset + begin, end - begin)


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
    """What a tile that stays in memory needs when it is done."""


class _ChunkInUse:
    """Gives a chunk back to the stream when the last of its tiles is done."""

    def __init__(self, stream: Stream, number: int, tiles: int) -> None:
        self._stream = stream
        self._number = number
        self._left = tiles
        self._lock = threading.Lock()

    def tile_done(self) -> None:
        """One tile is not needed any more."""
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._stream.release(self._number)


class Matrix:
    """A handle on a big matrix (outputs, inputs), whose rows lie in memory or on disk.

    Attributes:
        shape: (outputs, inputs).
        format: how its numbers are stored.
        team: the threads to work on it.
    """

    def __init__(
        self, array: StoredArray, format: Format, chunks: range, store: WeightStore
    ) -> None:
        self.shape = format.shape
        self.format = format
        self.team = store.team
        self._array = array
        self._chunks = chunks
        self._store = store

    def tiles(self) -> Iterator[Tile]:
        """All rows in order, a tile at a time, each to be marked as done.

        Raises:
            NumpyBloomError: they cannot be read.
        """
        stream = self._store.stream
        for number in self._chunks:
            content = stream.get(number)
            kept = stream.kept(number)
            if kept is None:
                yield from self._cut(number, content, stays=False)
            else:
                if not kept:
                    kept += self._cut(number, content, stays=True)
                yield from kept

    def _cut(self, number: int, content: memoryview, *, stays: bool) -> list[Tile]:
        """The tiles of a chunk, which must be given back unless it stays in memory."""
        stream, format = self._store.stream, self.format
        rows, columns = stream.chunks[number].rows, format.shape[1]
        stored = np.frombuffer(content, np.uint8)
        starts = rows[:: format.tile_rows]
        done = _nothing if stays else _ChunkInUse(stream, number, len(starts)).tile_done
        tiles = []
        for start in starts:
            tile = slice(start, min(start + format.tile_rows, rows.stop))
            end = format.nbytes(tile.stop - start, columns)
            tiles.append(Tile(tile, format.tile(stored[:end], tile), done))
            stored = stored[end:]
        return tiles

    def release(self) -> None:
        """No tile of it is needed any more, done or not."""
        self._store.stream.release()

    def row(self, number: int) -> Floats:
        """One row (inputs,) as float32: from memory if its chunk is pinned, else from disk."""
        stream, format = self._store.stream, self.format
        within = None
        if self._chunks:
            within = self._chunks[number // len(stream.chunks[self._chunks[0]].rows)]
        start = number - number % format.block_rows
        rows = range(start, min(start + format.block_rows, format.shape[0]))
        content = stream.read(_chunk(self._array, format, rows), within)
        tile = format.tile(np.frombuffer(content, np.uint8), slice(rows.start, rows.stop))
        row: Floats = format.widen(tile)[number - start]
        return row
