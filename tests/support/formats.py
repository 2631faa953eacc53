"""What the tests of formats share: matrices written and read as the package does it, decoders that
are written from docs/format.md alone, and how far off a product may be.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

from numpy_bloom.weights.dtypes import STORED
from numpy_bloom.weights.formats import Format, Tile, encoder
from numpy_bloom.weights.formats.base import Product
from support.checkpoints import Array, Floats, as_float32

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Matrix:
    """A matrix as a format has it.

    Attributes:
        format: that of its encoder.
        arrays: all that was written, by suffix: the matrix first. They stay as they are: they are
            decoded once.
    """

    format: Format
    arrays: dict[str, Array]

    @property
    def content(self) -> npt.NDArray[np.uint8]:
        return self.arrays[""].reshape(-1).view(np.uint8)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    @cached_property
    def decoded(self) -> Doubles:
        """What the arrays stand for."""
        return decode(self.format.dtype, self.format.shape, self.arrays)

    @cached_property
    def parts(self) -> tuple[Array, Doubles]:
        """Of int4 and int8: the integers, and for each what one step of it is worth."""
        if self.format.dtype == "int4":
            return int4_parts(self.format.shape, self.arrays)
        return self.arrays[""], int8_steps(self.arrays)

    @cached_property
    def magnitudes(self) -> Doubles:
        """Of all that is summed in a product."""
        if self.format.dtype == "int4":  # the 7.5 of (n - 7.5) is summed apart
            integers, steps = self.parts
            return (integers + 7.5) * steps
        return np.abs(self.decoded)


@cache
def normal(seed: object, *shape: int) -> Floats:
    """Random numbers, the same array each time."""
    numbers = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    numbers.flags.writeable = False
    return numbers


def written(values: Array, dtype: str, source: str = "float32", blocks: int = 1) -> Matrix:
    """Encode a matrix as conversion does it, so many blocks of rows at a time."""
    to = encoder(dtype, values.shape)
    for row in range(0, len(values), 7) if to.surveys else ():
        to.survey(values[row : row + 7], source)
    step = blocks * to.format.block_rows
    pieces = [to.encode(values[row : row + step], source) for row in range(0, len(values), step)]
    specs = to.arrays()
    beside = dict(zip([suffix for suffix in specs if suffix], to.beside(), strict=True))
    arrays = {"": np.concatenate([piece.reshape(-1) for piece in pieces]), **beside}
    for suffix, (stored_dtype, shape) in specs.items():
        assert arrays[suffix].dtype == STORED[stored_dtype]
        arrays[suffix] = arrays[suffix].reshape(shape)
    return Matrix(to.format(values.shape, beside), arrays)


# --- decoders -------------------------------------------------------------------------------------


def decode(dtype: str, shape: tuple[int, ...], arrays: Mapping[str, Array]) -> Doubles:
    """The numbers of a matrix."""
    if dtype == "int8":
        return arrays[""] * int8_steps(arrays)
    if dtype == "int4":
        integers, steps = int4_parts(shape, arrays)
        return (integers - 7.5) * steps
    if dtype == "bfloat16-packed":
        return as_float32(packed_patterns(shape, arrays)).astype(np.float64)
    return as_float32(arrays[""]).astype(np.float64)


def int8_steps(arrays: Mapping[str, Array]) -> Doubles:
    """For each integer what one step of it is worth."""
    scales: Doubles = arrays[".row_scale"].astype(np.float64)[:, None] * arrays[".column_scale"]
    return scales


def int4_parts(shape: tuple[int, ...], arrays: Mapping[str, Array]) -> tuple[Array, Doubles]:
    """The integers, from 0 to 15, and for each what one step of it is worth."""
    rows, columns = shape
    half = math.ceil(columns / 2)
    groups = math.ceil(half / 32)
    group = math.ceil(half / groups)
    upper, within = np.divmod(np.arange(columns), half)
    integers, steps = np.zeros(shape, np.uint8), np.zeros(shape)
    content, place = arrays[""].tobytes(), 0
    for start in range(0, rows, 512):
        height = min(512, rows - start)
        scales = np.frombuffer(content, "<f2", 2 * groups * height, place)
        scales = scales.reshape(2 * groups, height)
        place += scales.nbytes
        numbers = np.frombuffer(content, "u1", groups * group * height, place)
        numbers = numbers.reshape(groups * group, height)
        place += numbers.nbytes
        block = slice(start, start + height)
        integers[block, :half] = (numbers[:half] & 15).T
        integers[block, half:] = (numbers[: columns - half] >> 4).T
        steps[block] = scales[upper * groups + within // group].T
    assert place == len(content)
    return integers, steps * arrays[".column_scale"]


def packed_patterns(shape: tuple[int, ...], arrays: Mapping[str, Array]) -> Array:
    """The bfloat16 patterns."""
    rows, columns = shape
    (base,) = arrays[".exponent_base"].tolist()
    patterns = np.zeros(shape, np.uint16)
    content, place = arrays[""], 0
    for start in range(0, rows, 16):
        height = math.ceil(min(16, rows - start) / 4) * 4
        low = content[place:][: height // 2 * columns].reshape(-1, columns)
        place += low.size
        four_bits = content[place:][: height // 4 * columns].reshape(-1, columns)
        place += four_bits.size
        for i in range(min(height, rows - start)):
            above, row = divmod(i, height // 2)
            byte = low[row] >> 8 * above & 0xFF
            above, row = divmod(i, height // 4)
            bits = four_bits[row] >> 4 * above & 0xF
            patterns[start + i] = (bits >> 3) << 15 | (base + (bits & 7)) << 8 | byte
    assert place == content.size
    for exception in arrays[".exceptions"].tolist():
        patterns[divmod(exception >> 16, columns)] = exception & 0xFFFF
    return patterns


# --- products -------------------------------------------------------------------------------------


def tiles(matrix: Matrix, parts: Sequence[slice] = ()) -> Iterator[tuple[slice, Tile]]:
    """Some ranges of rows, each as a tile; by default one of all rows."""
    format, columns = matrix.format, matrix.format.shape[1]
    for rows in parts or [slice(0, format.shape[0])]:
        begin, end = format.nbytes(rows.start, columns), format.nbytes(rows.stop, columns)
        yield rows, format.tile(matrix.content[begin:end], rows)


def random_parts(random: np.random.Generator, format: Format) -> list[slice]:
    """All rows, cut at the beginning of some blocks."""
    rows = format.shape[0]
    starts = [row for row in range(0, rows, format.block_rows) if row == 0 or random.random() < 0.3]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], rows], strict=True)]


def product(matrix: Matrix, x: Floats, parts: Sequence[slice] = ()) -> Floats:
    """x · Wᵀ, tile by tile."""
    multiply: Product = matrix.format.product(x)
    y = np.full((len(x), matrix.format.shape[0]), np.nan, np.float32)
    for rows, tile in tiles(matrix, parts):
        y[:, rows] = written_apart(multiply, tile, len(x), rows.stop - rows.start)
    return y


def written_apart(multiply: Callable[[Tile, Floats], None], tile: Tile, *shape: int) -> Floats:
    """A product (T, rows), written into a part of a larger result as `linear` does it."""
    tokens, rows = shape
    whole = np.full((tokens, rows + 5), np.nan, np.float32)
    multiply(tile, whole[:, 2 : 2 + rows])
    assert np.isnan(whole[:, :2]).all()
    assert np.isnan(whole[:, 2 + rows :]).all()
    return whole[:, 2 : 2 + rows]


def assert_product(y: Floats, x: Floats, matrix: Matrix) -> None:
    """Whatever the order of a sum of n products in float32, it is off by at most n · 2⁻²⁴ (a bit
    more for n · 2⁻²⁴ near 1) of the sum of their magnitudes (Higham 2002, section 3.1).

    Two more roundings are granted where columns are summed in two halves, and one more for each
    scale. In int4 the 7.5 of (n - 7.5) is summed apart, so the magnitudes are those of both parts;
    its sum has fewer additions than there are columns, but in small matrices, and six cover these.
    """
    n = x.shape[1]
    roundings = n + {"int8": 4, "int4": 8}.get(matrix.format.dtype, 2)
    inputs = x.astype(np.float64)
    bound = 2.0**-24 * roundings * (np.abs(inputs) @ matrix.magnitudes.T)
    assert (np.abs(y - inputs @ matrix.decoded.T) <= bound).all()
