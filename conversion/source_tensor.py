"""One tensor of a checkpoint that is still on disk, whatever the file's format."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from numpy_bloom.errors import NumpyBloomError, failing_as
from numpy_bloom.weights.dtypes import STORED, Stored
from numpy_bloom.weights.safetensors_file import StoredArray


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of an array that lies row after row without gaps."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.insert(0, step)
        step *= size
    return tuple(strides)


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many elements lie from the first to the last one of such a view, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


@dataclass(frozen=True)
class SourceTensor(StoredArray):
    """Where one tensor lies, row-major or not: `read_rows` reads it.

    Attributes:
        path, name, dtype, shape, offset: as of a `StoredArray`; dtype is a name of `FLOATING`,
            shape is `()` for a single number, offset is that of the first element.
        strides: from one element to the next along each axis, in elements, none negative.
            PyTorch stores transposed and sliced tensors as such views of larger storages.
    """

    strides: tuple[int, ...]

    def read_rows(self, start: int, stop: int) -> Stored:
        """Read the rows `start` to `stop` (excluded) along axis 0; a 0-d tensor is one row.

        Of a row-major tensor nothing but these rows is read; of another one the pages on which
        their elements lie.

        Returns:
            Row-major array (stop - start, *shape[1:]) of NumPy type `STORED[dtype]`.

        Raises:
            ValueError: the tensor does not have these rows.
            NumpyBloomError: the file cannot be read or ends too early.
        """
        shape, strides = self.shape or (1,), self.strides or (1,)
        if not 0 <= start <= stop <= shape[0]:
            raise ValueError(f"{self} has rows 0 to {shape[0]}, not {start} to {stop}")
        shape = (stop - start, *shape[1:])
        itemsize = STORED[self.dtype].itemsize
        count = extent(shape, strides)
        offset = self.offset + start * strides[0] * itemsize
        mapped = strides != row_major(shape)
        with failing_as(f"cannot read {self}"):
            span = self._span(count, offset, mapped=mapped)
        if span.size != count:
            raise NumpyBloomError(f"{self} is truncated; download the file again")
        # Unlike as_strided, this constructor checks the strides against the buffer.
        rows: Stored = np.ndarray(
            shape, span.dtype, buffer=span, strides=[stride * itemsize for stride in strides]
        )
        return np.array(rows, order="C") if mapped else rows

    def _span(self, count: int, offset: int, *, mapped: bool) -> Any:
        """So many elements from an offset on, or fewer if the file ends; read, or mapped."""
        dtype = STORED[self.dtype]
        left = max(0, self.path.stat().st_size - offset) // dtype.itemsize
        if mapped and 0 < count <= left:
            return np.memmap(self.path, dtype, "r", offset, shape=(count,))
        return np.fromfile(self.path, dtype, count=min(count, left), offset=offset)
