"""An opened model folder as the model sees it: vectors at once, matrices when their turn comes."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.dtypes import STORED, Floats, Stored, all_finite, widen
from numpy_bloom.weights.files import DirectFiles
from numpy_bloom.weights.folder import EMBEDDINGS, LM_HEAD, Folder, StoredArray, read_stored
from numpy_bloom.weights.kernels import tile_rows
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
        vector_bytes: of small arrays, as float32, that were read.
    """

    def __init__(self, folder: Folder, threads: int) -> None:
        self.folder = folder
        self.team = Team(threads)
        self.vector_bytes = 0
        self._files = DirectFiles()
        self._blas = ThreadpoolController()
        self._matrices: dict[StoredArray, range] = {}  # their chunks' numbers
        chunks: list[Chunk] = []
        for array in _pass_order(folder):
            pieces = _chunks(array)
            self._matrices[array] = range(len(chunks), len(chunks) + len(pieces))
            chunks += pieces
        self.stream = Stream(chunks, self._files)

    def vector(self, file: str, name: str) -> Floats:
        """Read a small array as float32.

        Raises:
            NumpyBloomError: it cannot be read, or holds NaN or inf.
        """
        array = self.folder.arrays[file][name]
        values = read_stored(array)
        if not all_finite(values, array.dtype):
            raise NumpyBloomError(f"{array} holds NaN or inf; convert the checkpoint again")
        self.vector_bytes += 4 * values.size
        return widen(values, array.dtype)

    def matrix(self, file: str, name: str) -> "Matrix":
        """A handle on a big array."""
        array = self.folder.arrays[file][name]
        return Matrix(array, self._matrices.get(array, range(0)), self)

    def computing(self) -> AbstractContextManager[Any]:
        """Within it BLAS uses one thread, so that the team's threads do not get in its way."""
        limit: AbstractContextManager[Any] = self._blas.limit(limits=1, user_api="blas")
        return limit

    def close(self) -> None:
        """End all threads, close all files, give back all memory."""
        self.stream.close()
        self.team.close()
        self._files.close()


def _pass_order(folder: Folder) -> list[StoredArray]:
    """The matrices that a pass multiplies by, in order: the blocks', then the head."""
    head = LM_HEAD if LM_HEAD in folder.arrays else EMBEDDINGS
    files = [file for file in folder.arrays if file not in (EMBEDDINGS, LM_HEAD)]
    arrays = [array for file in [*files, head] for array in folder.arrays[file].values()]
    return [array for array in arrays if len(array.shape) > 1]


def _chunks(array: StoredArray) -> list[Chunk]:
    """Cut a matrix into chunks of whole tiles."""
    rows, columns = array.shape
    tile = tile_rows(columns)
    step = max(1, CHUNK_BYTES // (tile * array.row_bytes)) * tile
    return [Chunk(array, start, min(start + step, rows)) for start in range(0, rows, step)]


class Tile:
    """Some rows of a matrix, for one thread to work on.

    Attributes:
        rows: which ones.
        stored: their values (rows, inputs) in the stored type.
    """

    def __init__(self, rows: slice, stored: Stored, chunk: "_ChunkInUse") -> None:
        self.rows = rows
        self.stored = stored
        self.done = chunk.tile_done


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
        dtype: the stored type.
        team: the threads to work on it.
    """

    def __init__(self, array: StoredArray, chunks: range, store: WeightStore) -> None:
        self.shape = array.shape
        self.dtype = array.dtype
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
        step = tile_rows(self.shape[1])
        for number in self._chunks:
            chunk = stream.chunks[number]
            content = np.frombuffer(stream.get(number), STORED[self.dtype])
            stored = content.reshape(-1, self.shape[1])
            starts = range(0, len(stored), step)
            in_use = _ChunkInUse(stream, number, len(starts))
            for start in starts:
                tile = stored[start : start + step]
                rows = slice(chunk.start + start, chunk.start + start + len(tile))
                yield Tile(rows, tile, in_use)

    def release(self) -> None:
        """No tile of it is needed any more, done or not."""
        self._store.stream.release()

    def row(self, number: int) -> Floats:
        """One row (inputs,) as float32: from memory if its chunk is pinned, else from disk."""
        stream = self._store.stream
        within = None
        if self._chunks:  # an untied embedding is multiplied by nothing, so it has none
            first = stream.chunks[self._chunks[0]]
            within = self._chunks[number // (first.stop - first.start)]
        row = Chunk(self._array, number, number + 1)
        return widen(np.frombuffer(stream.read(row, within), STORED[self.dtype]), self.dtype)
