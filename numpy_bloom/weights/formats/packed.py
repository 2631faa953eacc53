"""bfloat16 in twelve bits, without loss.

The exponents of trained weights take few values: sixteen neighbouring ones hold nearly every
weight. (DFloat11 makes use of the same with Huffman codes: Zhang et al. 2025,
https://arxiv.org/abs/2504.11651.) So a bfloat16, whose bits are s eeeeeeee mmmmmmm, is cut in two:

- the low byte as it is: the last bit of the exponent and the mantissa;
- four bits: the sign, and the exponent's other seven bits less a base, from 0 to 7. The base is
  the matrix's own.

Weights outside of these exponents are listed beside, sorted, each in 64 bits: its position in the
matrix (row · inputs + column), and in the last sixteen bits its bfloat16.

Rows lie in blocks of R = 16 (in the last block as many as there are, filled up to a multiple of 4).
Numbers of different rows share 16 bits, so that unpacking yields whole rows:

    low bytes (R / 2, inputs) uint16: those of row i and, above them, of row R/2 + i
    four bits (R / 4, inputs) uint16: those of the rows i, R/4 + i, R/2 + i and 3R/4 + i
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from numpy_bloom.weights.dtypes import Floats, Stored
from numpy_bloom.weights.formats.base import Bytes, Encoder, Format, Product, Scratch, scratch
from numpy_bloom.weights.formats.floating import BFloat16, rounded
from numpy_bloom.weights.safetensors_file import Spec

EXPONENT_BASE, EXCEPTIONS = ".exponent_base", ".exceptions"

BASES = 128
"""Values of a bfloat16's seven upper exponent bits."""

SPAN = 8
"""Of them, those that three bits can tell."""

MOST_EXCEPTIONS = 1 / 128
"""Of all weights. More than these, which are always in memory, make a matrix stay bfloat16."""

Patterns = npt.NDArray[np.uint16]
Tile = tuple[Patterns, int, npt.NDArray[np.uint64]]
"""Blocks as they are stored, number of rows, and the exceptions among them, with positions that
count from the tile's first weight."""

_SIGN_AND_EXPONENT = np.uint16(0x8700)


class PackedBFloat16(Format):
    """Blocks of packed numbers, with the exponents' base and the list of exceptions beside."""

    dtype = "bfloat16-packed"
    stored_dtype = "uint16"
    block_rows = 16

    def __init__(self, shape: tuple[int, ...], beside: Mapping[str, Stored]) -> None:
        super().__init__(shape, beside)
        base = int(beside[EXPONENT_BASE][0])
        if base > BASES - SPAN:
            raise ValueError(f"exponent_base {base}, expected 0 to {BASES - SPAN}")
        self._base = np.uint16(base << 8)
        self._exceptions: npt.NDArray[np.uint64] = beside[EXCEPTIONS]
        positions = self._exceptions >> np.uint64(16)
        if (positions[1:] <= positions[:-1]).any():
            raise ValueError("exceptions that are not in order")
        if positions.size and int(positions[-1]) >= shape[0] * shape[1]:
            raise ValueError(f"exceptions beyond its {shape[0] * shape[1]:,} weights")
        self._unpacked = BFloat16(shape, {})

    @classmethod
    def nbytes(cls, rows: int, columns: int) -> int:
        return _padded(rows) * columns * 3 // 2

    @classmethod
    def arrays(cls, shape: tuple[int, ...]) -> dict[str, Spec]:
        return {
            "": ("uint16", (cls.nbytes(*shape) // 2,)),
            EXPONENT_BASE: ("uint64", (1,)),  # what follows it in the file stays aligned
            EXCEPTIONS: ("uint64", (-1,)),
        }

    def scratch_bytes(self, tokens: int) -> int:
        """A tile in bfloat16, a half of it, and what bfloat16 takes."""
        unpacked = 2 * self.tile_rows * self.shape[1]
        return unpacked + unpacked // 2 + self._unpacked.scratch_bytes(tokens)

    def tile(self, content: Bytes, rows: slice) -> Tile:
        columns = self.shape[1]
        positions = np.array([rows.start, rows.stop], dtype=np.uint64) * np.uint64(columns)
        first, last = np.searchsorted(self._exceptions, positions << np.uint64(16))
        exceptions = self._exceptions[first:last] - (positions[0] << np.uint64(16))
        return content.view(np.uint16), rows.stop - rows.start, exceptions

    def widen(self, tile: Tile) -> Floats:
        return self._unpacked.widen(self._unpack(tile))

    def product(self, x: Floats) -> Product:
        """Of exactly the bits that bfloat16 gives: it is what the product is taken with."""
        multiply_unpacked = self._unpacked.product(x)

        def multiply(tile: Tile, out: Floats) -> None:
            multiply_unpacked(self._unpack(tile), out)

        return multiply

    def _unpack(self, tile: Tile) -> Patterns:
        """The tile as bfloat16 patterns (rows, inputs), in the thread's scratch array."""
        stored, rows, exceptions = tile
        columns = self.shape[1]
        filled = _padded(rows)
        size = filled * columns
        patterns = scratch(-(-size // 2), Scratch.BITS).view(np.uint16)[:size]
        whole = rows - rows % self.block_rows
        for start, stop, height in ((0, whole, self.block_rows), (whole, filled, filled - whole)):
            if start < stop:
                quarter = height // 4 * columns
                begin, end = (self.nbytes(row, columns) // 2 for row in (start, stop))
                self._unpack_blocks(
                    stored[begin:end].reshape(-1, 3, quarter),
                    patterns[start * columns : stop * columns].reshape(-1, 4, quarter),
                )
        patterns[(exceptions >> np.uint64(16)).astype(np.int64)] = exceptions.astype(np.uint16)
        return patterns.reshape(filled, columns)[:rows]

    def _unpack_blocks(self, blocks: Patterns, patterns: Patterns) -> None:
        """Unpack blocks (n, 3, R/4 · inputs) into (n, 4, R/4 · inputs).

        Each step takes in as much as it can: NumPy works best in few, long runs.
        """
        low, four_bits = blocks[:, :2], blocks[:, 2]
        # The sign comes to the last bit, where an arithmetic shift leaves it. (A product shifts to
        # the left twice as fast as NumPy's own shift.)
        for i in range(3):
            np.multiply(four_bits, 1 << (12 - 4 * i), out=patterns[:, i])
        signed = patterns.view(np.int16)
        np.right_shift(signed[:, :3], 4, out=signed[:, :3])
        np.right_shift(four_bits.view(np.int16), 4, out=signed[:, 3])
        np.bitwise_and(patterns, _SIGN_AND_EXPONENT, out=patterns)
        np.add(patterns, self._base, out=patterns)
        part = scratch(-(-low.size // 2), Scratch.PART).view(np.uint16)[: low.size]
        part = part.reshape(low.shape)
        np.bitwise_and(low, 0xFF, out=part)
        np.bitwise_or(patterns[:, :2], part, out=patterns[:, :2])
        np.right_shift(low, 8, out=part)
        np.bitwise_or(patterns[:, 2:], part, out=patterns[:, 2:])


def _padded(rows: int) -> int:
    """The next multiple of 4."""
    return -(-rows // 4) * 4


class PackedEncoder(Encoder):
    """Packs bfloat16; a matrix stays as it is that has many exceptions, or very few rows."""

    surveys = True

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self._counts = np.zeros(BASES, dtype=np.int64)
        self._exceptions: list[npt.NDArray[np.uint64]] = []
        self._rows = 0

    def survey(self, values: Stored, dtype: str) -> None:
        exponents = (_patterns(values, dtype) >> 8) & 0x7F
        self._counts += np.bincount(exponents.reshape(-1), minlength=BASES)

    def _base(self) -> int:
        """The base that leaves the fewest exceptions."""
        within = np.convolve(self._counts, np.ones(SPAN, dtype=np.int64), mode="valid")
        return int(within.argmax())

    def _number_of_exceptions(self) -> int:
        base = self._base()
        return int(self._counts.sum() - self._counts[base : base + SPAN].sum())

    @property
    def format(self) -> type[Format]:
        few = self._number_of_exceptions() <= MOST_EXCEPTIONS * self._counts.sum()
        filling = PackedBFloat16.nbytes(*self.shape) / BFloat16.nbytes(*self.shape)
        return PackedBFloat16 if few and filling < 0.9 else BFloat16

    def arrays(self) -> dict[str, Spec]:
        arrays = super().arrays()
        if EXCEPTIONS in arrays:
            arrays[EXCEPTIONS] = ("uint64", (self._number_of_exceptions(),))
        return arrays

    def encode(self, values: Stored, dtype: str) -> Stored:
        patterns = _patterns(values, dtype)
        if self.format is BFloat16:
            return patterns
        upper = (patterns >> np.uint16(8)) & np.uint16(0x7F)  # of the exponent
        relative = upper - np.uint16(self._base())  # wraps around below the base
        self._note_exceptions(patterns, relative >= SPAN)
        four_bits = (relative & np.uint16(7)) | ((patterns >> np.uint16(12)) & np.uint16(8))
        low = patterns & np.uint16(0xFF)
        blocks = []
        for start in range(0, len(patterns), PackedBFloat16.block_rows):
            rows = slice(start, start + PackedBFloat16.block_rows)
            a, b = np.split(_with_rows(low[rows]), 2)
            c, d, e, f = np.split(_with_rows(four_bits[rows]), 4)
            blocks += [a | b << 8, c | d << 4 | e << 8 | f << 12]
        return np.concatenate([block.reshape(-1) for block in blocks])

    def _note_exceptions(self, patterns: Patterns, where: npt.NDArray[np.bool_]) -> None:
        positions = np.flatnonzero(where) + self._rows * self.shape[1]
        found = patterns[where].astype(np.uint64)
        self._exceptions.append(positions.astype(np.uint64) << np.uint64(16) | found)
        self._rows += len(patterns)

    def beside(self) -> list[Stored]:
        if self.format is BFloat16:
            return []
        return [np.array([self._base()], dtype=np.uint64), np.concatenate(self._exceptions)]


def _patterns(values: Stored, dtype: str) -> Patterns:
    """The numbers as bfloat16."""
    return rounded(values, dtype, "bfloat16")


def _with_rows(rows: Patterns) -> Patterns:
    """Rows of zeros added up to the next multiple of 4."""
    missing = _padded(len(rows)) - len(rows)
    return np.concatenate([rows, np.zeros((missing, rows.shape[1]), rows.dtype)])
