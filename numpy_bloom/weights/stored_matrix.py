"""A matrix of an array file, with the small arrays beside it that its format needs."""

from collections.abc import Iterator
from dataclasses import dataclass

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.dtypes import FLOATING, Stored, all_finite
from numpy_bloom.weights.formats import Format, Tile
from numpy_bloom.weights.manifest import see_verify
from numpy_bloom.weights.safetensors_file import StoredArray, read_stored


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix in a file.

    Attributes:
        format: how it is stored.
        shape: (outputs, inputs).
        array: where its numbers lie.
        beside: the small arrays that its format needs, by suffix.
    """

    format: type[Format]
    shape: tuple[int, ...]
    array: StoredArray
    beside: dict[str, StoredArray]

    def opened(self) -> Format:
        """The matrix in its format, with what lies beside it read.

        Raises:
            NumpyBloomError: that cannot be read, or is damaged.
        """
        way_out = see_verify(self.array.path.parent, deep=True)
        for suffix, (_, shape) in self.format.arrays(self.shape).items():
            if shape == (-1,) and self.beside[suffix].nbytes > self.array.nbytes:
                raise NumpyBloomError(f"{self.beside[suffix]} is larger than its matrix{way_out}")
        beside = {suffix: read_small(array) for suffix, array in self.beside.items()}
        try:
            return self.format(self.shape, beside)
        except ValueError as error:
            raise NumpyBloomError(f"{self.array} has {error}{way_out}") from error

    def tiles(self, format: Format) -> Iterator[Tile]:
        """All rows in order, some of them at a time, as `format.widen` wants them; of a floating
        type, the stored numbers.

        Raises:
            NumpyBloomError: they cannot be read.
        """
        rows, columns = self.shape
        for start in range(0, rows, format.tile_rows):
            stop = min(start + format.tile_rows, rows)
            begin, end = format.nbytes(start, columns), format.nbytes(stop, columns)
            place = self.array.offset + begin
            part = StoredArray(self.array.path, self.array.name, "uint8", (end - begin,), place)
            yield format.tile(read_stored(part), slice(start, stop))


def read_small(array: StoredArray) -> Stored:
    """A vector, or what lies beside a matrix, in its stored type.

    Raises:
        NumpyBloomError: it cannot be read, or holds NaN or inf.
    """
    values = read_stored(array)
    if array.dtype in FLOATING and not all_finite(values, array.dtype):
        way_out = see_verify(array.path.parent, deep=True)
        raise NumpyBloomError(f"{array} holds NaN or inf{way_out}")
    return values
