"""An opened model folder as the model sees it: vectors at once, matrices when their turn comes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.dtypes import STORED, Floats, Stored, all_finite, widen
from numpy_bloom.weights.folder import Folder, StoredArray, read_stored

CHUNK_BYTES = 16 << 20
"""Most that is read of a matrix at once."""


@dataclass(frozen=True)
class Matrix:
    """A handle on a big matrix (outputs, inputs) that lies on disk in its stored type."""

    array: StoredArray

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.array.shape
        return rows, columns

    @property
    def dtype(self) -> str:
        return self.array.dtype

    def rows(self, start: int, stop: int) -> Stored:
        """Rows start to stop, in the stored type."""
        row_bytes = self.shape[1] * STORED[self.dtype].itemsize
        part = replace(
            self.array,
            shape=(stop - start, self.shape[1]),
            offset=self.array.offset + start * row_bytes,
        )
        return read_stored(part)

    def chunks(self) -> Iterator[tuple[slice, Stored]]:
        """All rows in order, some at a time, with their place."""
        row_bytes = self.shape[1] * STORED[self.dtype].itemsize
        step = max(1, CHUNK_BYTES // row_bytes)
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            yield slice(start, stop), self.rows(start, stop)


class WeightStore:
    """The arrays of a converted folder.

    Attributes:
        folder: where they lie.
        bytes_pinned: of matrices held in memory.
        bytes_read: of matrices read from disk so far.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.bytes_pinned = 0
        self.bytes_read = 0

    def close(self) -> None:
        """Give back files and memory."""

    def vector(self, file: str, name: str) -> Floats:
        """Read a small array as float32.

        Raises:
            NumpyBloomError: it cannot be read, or holds NaN or inf.
        """
        array = self.folder.arrays[file][name]
        values = read_stored(array)
        if not all_finite(values, array.dtype):
            raise NumpyBloomError(f"{array} holds NaN or inf; convert the checkpoint again")
        return widen(values, array.dtype)

    def matrix(self, file: str, name: str) -> Matrix:
        """A handle on a big array."""
        return Matrix(self.folder.arrays[file][name])
