"""Four-bit integers, with a scale for each group of some 32 weights in a row.

W[r, c] = column_scale[c] · scale[r, group] · (n - 7.5), for n from 0 to 15. A column's scale is its
largest magnitude, as in `int8`; a group's scale, a float16, is a 7.5th of the largest that is left,
rounded up. Sixteen levels that are symmetric about zero, without zero itself, use all four bits;
what is smaller than half a level becomes half a level.

Rows lie in blocks of 512, and a block lies column after column, so that a group's scales for all
its rows are neighbours, as its numbers are: NumPy then works in long runs, and a group's products
can be scaled after they are summed. In a block of R rows the two halves of the columns, h each
(padded with zeros to G whole groups), share bytes:

    scales (2 G, R) float16: first those of the first half's groups
    numbers (h, R) uint8: the first half's in the low four bits, the second half's in the high ones
"""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from numpy_bloom.weights.dtypes import Floats, Stored
from numpy_bloom.weights.formats.base import Bytes, Format, Product, Scratch, scratch
from numpy_bloom.weights.formats.floating import FLOAT16_SCALE
from numpy_bloom.weights.formats.int8 import COLUMN_SCALE, ScaledEncoder
from numpy_bloom.weights.safetensors_file import Spec

GROUP = 32
"""Most columns that share a scale."""

ZERO = 7.5
"""What lies halfway between the integers 0 and 15."""

STRIP_ELEMENTS = 1 << 19
"""Weights of a block, in both halves, that are widened at a time: fewer would be more operations,
between which threads wait for the interpreter's lock."""

SUMMED_TOKENS = 16
"""Up to so many tokens, a group's products are scaled, not its weights."""

Tile = list[tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]]]
"""For each block its scales (2, G, R) and its numbers (G, group, R)."""


class Columns:
    """How the columns of a matrix fall into halves and groups.

    Attributes:
        count: all columns.
        half: columns of the first half; the second may have one less.
        groups: G, of each half.
        group: columns of each group.
        padded: columns of each half, filled up to whole groups.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.half = -(-count // 2)
        self.groups = -(-self.half // GROUP)
        self.group = -(-self.half // self.groups)
        self.padded = self.groups * self.group

    def strips(self, rows: int) -> Iterator[slice]:
        """Ranges of groups, as many at a time as `STRIP_ELEMENTS` allows."""
        step = max(1, STRIP_ELEMENTS // (2 * self.group * rows))
        for start in range(0, self.groups, step):
            yield slice(start, min(start + step, self.groups))

    def of(self, half: int, groups: slice) -> slice:
        """The columns of some groups of one half."""
        begin, end = half * self.half, min((half + 1) * self.half, self.count)
        return slice(begin + groups.start * self.group, min(begin + groups.stop * self.group, end))

    def split(self, x: Floats, scale: Floats) -> Floats:
        """x (T, columns), scaled, as (T, 2, G, group), padded with zeros. Makes no other copy."""
        split = np.zeros((len(x), 2, self.groups, self.group), dtype=np.float32)
        for half in (0, 1):
            for groups in (slice(0, self.groups - 1), slice(self.groups - 1, self.groups)):
                columns, count = self.of(half, groups), groups.stop - groups.start
                if count:  # groups of one width: only the last may be padded
                    grouped = x[:, columns].reshape(len(x), count, -1)
                    scales = scale[columns].reshape(count, -1)
                    width = grouped.shape[2]
                    np.multiply(grouped, scales, out=split[:, half, groups, :width])
        return split


class Int4(Format):
    """Blocks of scales and numbers, with a float32 scale for each column beside."""

    dtype = "int4"
    stored_dtype = "uint8"
    block_rows = 512

    def __init__(self, shape: tuple[int, ...], beside: Mapping[str, Stored]) -> None:
        super().__init__(shape, beside)
        self._column_scale: Floats = beside[COLUMN_SCALE]
        self._columns = Columns(shape[1])

    @classmethod
    def nbytes(cls, rows: int, columns: int) -> int:
        split = Columns(columns)
        return rows * (2 * split.groups * 2 + split.padded)

    @classmethod
    def arrays(cls, shape: tuple[int, ...]) -> dict[str, Spec]:
        return {
            "": ("uint8", (cls.nbytes(*shape),)),
            COLUMN_SCALE: ("float32", (shape[1],)),
        }

    def scratch_bytes(self, tokens: int) -> int:
        columns = self._columns
        strip = min(columns.padded, max(STRIP_ELEMENTS // (2 * self.block_rows), columns.group))
        strip *= 2 * self.block_rows
        scales = 2 * columns.groups * self.block_rows
        sums = strip // columns.group * min(tokens, SUMMED_TOKENS)
        return 5 * strip + 4 * (2 * scales + sums + tokens * 2 * self.block_rows)

    def tile(self, content: Bytes, rows: slice) -> Tile:
        blocks = []
        groups, group = self._columns.groups, self._columns.group
        for start in range(rows.start, rows.stop, self.block_rows):
            count = min(self.block_rows, rows.stop - start)
            begin = self.nbytes(start - rows.start, self.shape[1])
            scales = content[begin : begin + 4 * groups * count].view(np.float16)
            begin += scales.nbytes
            numbers = content[begin : begin + groups * group * count]
            blocks.append((scales.reshape(2, groups, count), numbers.reshape(groups, group, count)))
        return blocks

    def widen(self, tile: Tile) -> Floats:
        rows = []
        for scales, numbers in tile:
            halves = np.stack([numbers & 15, numbers >> 4]) - np.float32(ZERO)  # (2, G, group, R)
            halves *= scales[:, :, None]
            columns = halves.reshape(2, self._columns.padded, -1)
            both = [columns[0, : self._columns.half], columns[1]]
            rows.append(np.concatenate(both)[: self.shape[1]].T * self._column_scale)
        return np.concatenate(rows)

    def product(self, x: Floats) -> Product:
        columns, tokens = self._columns, len(x)
        x = columns.split(x, self._column_scale)  # (T, 2, G, group)
        offsets = -np.float32(ZERO) * x.sum(axis=-1).reshape(tokens, -1)  # (T, 2 G)
        strips = list(columns.strips(self.block_rows))
        few = tokens <= SUMMED_TOKENS
        by_group = x.transpose(1, 2, 0, 3)  # (2, G, T, group)
        parts = [np.ascontiguousarray(by_group[:, groups]) for groups in strips] if few else []

        def multiply(tile: Tile, out: Floats) -> None:
            done = 0
            for stored_scales, numbers in tile:
                scales = _widened_scales(stored_scales)  # (2, G, R)
                y = offsets @ scales.reshape(-1, scales.shape[2])  # (T, R)
                for number, groups in enumerate(strips):
                    wide, scale = _widened(numbers[groups]), scales[:, groups]
                    if few:
                        y += np.einsum("hgr,hgtr->tr", scale, parts[number] @ wide)
                    else:
                        wide *= scale[:, :, None]
                        for half in (0, 1):
                            part = x[:, half, groups].reshape(tokens, -1)
                            y += part @ wide[half].reshape(-1, wide.shape[3])
                out[:, done : done + y.shape[1]] = y
                done += y.shape[1]

        return multiply


def _widened(numbers: npt.NDArray[np.uint8]) -> Floats:
    """The numbers of both halves, 0 to 15, as float32 (2, G, group, R)."""
    shape = 2, *numbers.shape
    size = 2 * numbers.size
    bits = scratch(-(-size // 4), Scratch.BITS).view(np.uint8)[:size].reshape(shape)
    np.bitwise_and(numbers, 15, out=bits[0])
    np.right_shift(numbers, 4, out=bits[1])
    wide = scratch(size).view(np.float32).reshape(shape)
    np.copyto(wide, bits)
    return wide


def _widened_scales(scales: npt.NDArray[np.float16]) -> Floats:
    """float16 numbers as float32: see `floating` for the way."""
    patterns = scales.view(np.uint16)
    if patterns.max() >= 0x7C00:  # negative, inf or NaN: of a damaged file
        return scales.astype(np.float32)
    bits = patterns.astype(np.uint32)
    bits <<= 13
    widened: Floats = bits.view(np.float32)
    widened *= FLOAT16_SCALE
    return widened


class Int4Encoder(ScaledEncoder):
    """Rounds to `Int4`."""

    format = Int4

    def encode(self, values: Stored, dtype: str) -> Stored:
        columns = Columns(self.shape[1])
        blocks = []
        for start in range(0, len(values), Int4.block_rows):
            rows = values[start : start + Int4.block_rows]
            scales = np.zeros((2, columns.groups, len(rows)), dtype=np.float16)
            numbers = np.zeros((columns.groups, columns.group, len(rows)), dtype=np.uint8)
            for half in (0, 1):
                for groups in columns.strips(len(rows)):
                    scaled = np.zeros(numbers[groups].shape, dtype=np.float32)
                    part = self.scaled(rows, dtype, columns.of(half, groups)).T
                    scaled.reshape(-1, len(rows))[: len(part)] = part
                    scale = _rounded_up(np.abs(scaled).max(axis=1) / np.float32(ZERO))
                    scales[half, groups] = scale
                    divisor = np.where(scale > 0, scale, np.float16(1)).astype(np.float32)
                    levels = np.floor(scaled / divisor[:, None]) + 8
                    numbers[groups] |= np.clip(levels, 0, 15).astype(np.uint8) << (4 * half)
            blocks += [scales.view(np.uint8).reshape(-1), numbers.reshape(-1)]
        return np.concatenate(blocks)

    def beside(self) -> list[Stored]:
        return [self.column_scale]


def _rounded_up(values: Floats) -> npt.NDArray[np.float16]:
    """The least float16 numbers that are not below the values."""
    rounded = values.astype(np.float16)
    return np.where(rounded < values, np.nextafter(rounded, np.float16(np.inf)), rounded)
