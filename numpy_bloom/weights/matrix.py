"""A big matrix as the model has it: a handle, whose rows lie in memory or on disk."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from numpy_bloom.weights import formats
from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.formats import Format
from numpy_bloom.weights.processes import Cut, Processes
from numpy_bloom.weights.safetensors_file import ALIGNMENT, StoredArray
from numpy_bloom.weights.shared import SharedPages
from numpy_bloom.weights.stream import Chunk, Stream

if TYPE_CHECKING:
    from numpy_bloom.weights.store import WeightStore

NOT_MULTIPLIED = -1
"""In place of a number, if nothing is multiplied by a matrix."""


class MatrixPart(NamedTuple):
    """Some rows of a matrix, the number of the chunk in which they are, and whether they are the
    first in it: it may hold several parts, of several matrices.
    """

    chunk: int
    rows: range
    begins: bool


class TileInUse:
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
    """A handle on a big matrix (outputs, inputs).

    Args:
        array: where it lies.
        format: how its numbers are stored.
        store: which opened it.
        parts: all its rows in order, if a pass multiplies by it.
        number: its place among the matrices that a pass multiplies by.

    Attributes:
        shape: (outputs, inputs).
        format, number: as given.
        team: the threads to work on it.
    """

    def __init__(
        self,
        array: StoredArray,
        format: Format,
        store: "WeightStore",
        parts: Sequence[MatrixPart] = (),
        number: int = NOT_MULTIPLIED,
    ) -> None:
        self.shape = format.shape
        self.format = format
        self.team = store.team
        self.number = number
        self._array = array
        self._parts = parts
        self._store = store

    def tiles(self) -> Iterator[TileInUse]:
        """All rows in order, a tile at a time, each to be marked as done.

        Raises:
            NumpyBloomError: they cannot be read.
        """
        stream, in_use = self._store.stream, self._store.in_use
        for part in self._parts:
            kept, place = stream.kept(part.chunk), (self, part.rows.start)
            if kept is None:
                content, done = in_use.get(part.chunk), partial(in_use.tile_done, part.chunk)
                tiles: Iterable[TileInUse] = self._cut(part, content, done)
            elif place in kept:
                tiles = kept[place]
            else:
                content = stream.get(part.chunk)
                tiles = kept[place] = list(self._cut(part, content, _nothing))
            if part.begins:
                in_use.on_chunk(stream.chunks[part.chunk])
            yield from tiles

    def _cut(
        self, part: MatrixPart, content: memoryview, done: Callable[[], None]
    ) -> Iterator[TileInUse]:
        """The tiles of one part, whose chunk's bytes are at hand."""
        for rows, skip, nbytes in self._cuts(part):
            stored = np.frombuffer(content, np.uint8, nbytes, skip)
            yield TileInUse(rows, self.format.tile(stored, rows), done)

    def _cuts(self, part: MatrixPart) -> Iterator[Cut]:
        """Where the tiles of one part lie in its chunk."""
        format, chunk = self.format, self._store.stream.chunks[part.chunk]
        for start in part.rows[:: format.tile_rows]:
            rows = range(start, min(start + format.tile_rows, part.rows.stop))
            tile = bytes_of(self._array, format, rows)
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

    def row(self, number: int) -> Floats:
        """One row (inputs,) as float32: from memory if its chunk is pinned, else from disk."""
        format = self.format
        within = None
        if self._parts:  # all have as many rows as the first, but for the last one
            within = self._parts[number // len(self._parts[0].rows)].chunk
        start = number - number % format.block_rows
        rows = range(start, min(start + format.block_rows, format.shape[0]))
        content = self._store.stream.read(bytes_of(self._array, format, rows), within)
        tile = format.tile(np.frombuffer(content, np.uint8), slice(rows.start, rows.stop))
        row: Floats = format.widen(tile)[number - start]
        return row


def bytes_of(array: StoredArray, format: Format, rows: range) -> Chunk:
    """Where some rows lie, which begin with a block."""
    begin, end = (format.nbytes(row, format.shape[1]) for row in (rows.start, rows.stop))
    return Chunk(array.path, array.offset + begin, end - begin)


class ChunksInUse:
    """The chunks that a pass works on: each goes back to the stream when its last tile is done.

    Args:
        stream: of all chunks.
        tiles: how many tiles are in each chunk, by number.

    Attributes:
        on_chunk: called with each chunk that a pass comes to.
    """

    def __init__(self, stream: Stream, tiles: Mapping[int, int]) -> None:
        self.on_chunk: Callable[[Chunk], None] = lambda chunk: None
        self._stream = stream
        self._tiles = tiles
        self._contents: dict[int, memoryview] = {}
        self._left: Counter[int] = Counter()  # tiles that are not done
        self._lock = threading.Lock()

    def get(self, number: int) -> memoryview:
        """Bytes of a chunk that is not pinned, valid until all its tiles are done, or `release` is
        called.

        Raises:
            NumpyBloomError: it cannot be read.
        """
        if number not in self._contents:
            self._contents[number] = self._stream.get(number)
            self._left[number] = self._tiles[number]
        return self._contents[number]

    def tile_done(self, number: int) -> None:
        """One tile of a chunk is not needed any more."""
        with self._lock:
            self._left[number] -= 1
            last = self._left[number] == 0
        if last:
            self._contents.pop(number, None)
            self._stream.release(number)

    def release(self) -> None:
        """No tile of any chunk is needed any more, done or not."""
        self._contents.clear()
        self._stream.release()
