"""What every format of a matrix can do, and what the formats share.

A format says how the numbers of one matrix (outputs, inputs) lie in its array. It widens them
tile by tile: a tile is some rows, whose bytes come from memory once, are widened into a scratch
array that stays in the cache of one core, and meet BLAS there. docs/performance.md has the figures
behind each choice.
"""

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from numpy_bloom.weights.dtypes import Floats, Stored
from numpy_bloom.weights.safetensors_file import Spec

TILE_ELEMENTS = 1 << 19
"""Weights in a tile, so that half of them fit a core's cache as float32."""

LEAST_ROWS = 64
"""Of a tile, however wide: with fewer, BLAS is slow for some tokens and more."""

TILE_UNIT = 16
"""Rows of a tile are a multiple of these, so that bfloat16, packed and not, has the same tiles."""

CACHE_LINE = 64
"""Bytes."""

FEW_TOKENS = 4
"""Up to so many are multiplied one by one: BLAS is up to twice as slow with narrow matrices."""

Bytes = npt.NDArray[np.uint8]
Tile = Any
"""Some rows of a matrix in its format, as that format's `product` and `widen` want them."""

Product = Callable[[Tile, Floats], None]
"""Multiplies a tile with the x at hand, into a part (T, rows) of the result."""

_thread = threading.local()


class Scratch(IntEnum):
    """What a thread's scratch arrays are for; two that are in use at once have different ones."""

    WIDE = 0
    """A tile, or half of it, in float32."""
    BITS = 1
    """A tile in integers, on the way there."""
    PART = 2
    """A part of these."""
    PRODUCT = 3
    SECOND_PRODUCT = 4


class Format(ABC):
    """How one matrix is stored.

    Args:
        shape: (outputs, inputs).
        beside: the small arrays of `arrays`, without the matrix itself, by suffix.

    Attributes:
        dtype: the format's name, as in `--dtype`.
        stored_dtype: of the array; no other format has the same.
        block_rows: rows that lie together and can only be read together.

    Raises:
        ValueError: what lies beside cannot be; tells what it is.
    """

    dtype: ClassVar[str]
    stored_dtype: ClassVar[str]
    block_rows: ClassVar[int] = 1

    def __init__(self, shape: tuple[int, ...], beside: Mapping[str, Stored]) -> None:
        self.shape = shape

    @classmethod
    @abstractmethod
    def nbytes(cls, rows: int, columns: int) -> int:
        """Bytes of the first so many rows; all but a matrix's last block are whole."""

    @classmethod
    @abstractmethod
    def arrays(cls, shape: tuple[int, ...]) -> dict[str, Spec]:
        """Its arrays by what follows the matrix's name: the matrix first, then small ones.

        A size of -1 stands for any.
        """

    @property
    def tile_rows(self) -> int:
        """Rows of a tile. They depend on the matrix alone, so that results do not depend on how
        its rows are spread over chunks and threads."""
        unit = max(TILE_UNIT, self.block_rows)
        return max(1, LEAST_ROWS // unit, TILE_ELEMENTS // (self.shape[1] * unit)) * unit

    def scratch_bytes(self, tokens: int) -> int:
        """Memory that one thread needs to multiply, at most: two arrays of a tile's size, and two
        products with it."""
        rows = self.tile_rows
        return 4 * (2 * rows * self.shape[1] + 2 * rows * (tokens + 3))

    @abstractmethod
    def tile(self, content: Bytes, rows: slice) -> Tile:
        """The rows whose bytes are at hand; they begin with a block."""

    @abstractmethod
    def widen(self, tile: Tile) -> Floats:
        """The tile's numbers (rows, inputs) as a new float32 array."""

    @abstractmethod
    def product(self, x: Floats) -> Product:
        """A function that multiplies tiles with x (T, inputs) float32, from several threads."""


class Encoder(ABC):
    """Turns the rows of a tensor into a format, from the first to the last.

    Args:
        shape: (outputs, inputs).

    Attributes:
        surveys: whether all rows must be shown to `survey` before the first is encoded.
    """

    surveys: ClassVar[bool] = False

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def survey(self, values: Stored, dtype: str) -> None:  # noqa: B027  (most need none)
        """Take note of some rows.

        Args:
            values: (rows, inputs) of NumPy type `STORED[dtype]`, finite.
            dtype: a name of `FLOATING`.
        """

    @property
    @abstractmethod
    def format(self) -> type[Format]:
        """The format; known after the survey."""

    def arrays(self) -> dict[str, Spec]:
        """What will be written, as `Format.arrays` has it, without open sizes."""
        return self.format.arrays(self.shape)

    @abstractmethod
    def encode(self, values: Stored, dtype: str) -> Stored:
        """The next rows as they are to be stored; whole blocks, but for the last of the matrix.

        Args:
            values, dtype: as for `survey`.
        """

    def beside(self) -> list[Stored]:
        """The small arrays, in the order of `arrays`, once all rows are encoded."""
        return []


def scratch(size: int, use: Scratch = Scratch.WIDE) -> npt.NDArray[np.uint32]:
    """An array that lives as long as its thread: a new one would cost page faults every time.

    It begins with a cache line. NumPy's own begin 16 bytes later, and vector registers of 64 bytes
    would meet two lines each time.

    Args:
        size: words of 32 bits.
        use: what for; arrays for different uses do not overlap.
    """
    arrays: dict[Scratch, npt.NDArray[np.uint32]] = _thread.__dict__.setdefault("arrays", {})
    words = arrays.get(use)
    if words is None or words.size < size:
        words = np.empty(size + CACHE_LINE // 4, dtype=np.uint32)
        begin = -words.ctypes.data % CACHE_LINE // 4
        words = arrays[use] = words[begin : begin + size]
    return words[:size]


def filled_up(x: Floats) -> Floats:
    """x (T, inputs), with rows of zeros added where BLAS is faster with more tokens.

    It works on eight columns at a time, and what is left over takes longer than another eight.
    """
    missing = -len(x) % 8
    if len(x) <= FEW_TOKENS or missing not in (1, 2, 3):
        return x
    return np.concatenate([x, np.zeros((missing, x.shape[1]), x.dtype)])


def multiply_into(out: Floats, weights: Floats, x: Floats) -> None:
    """out = x · weightsᵀ, for weights (rows, inputs), filled up x (T, inputs), out (T, rows)."""
    if len(x) <= FEW_TOKENS:
        for y, token in zip(out, x, strict=True):
            weights.dot(token, out=y)
    else:
        out[:] = tall_product(weights, x)[:, : len(out)].T


def tall_product(weights: Floats, x: Floats, use: Scratch = Scratch.PRODUCT) -> Floats:
    """weights · xᵀ (rows, T): for few tokens twice as fast as x · weightsᵀ.

    In the thread's scratch array for that use, if it is no larger than a tile.
    """
    shape = len(weights), len(x)
    size = math.prod(shape)
    out = scratch(size, use).view(np.float32).reshape(shape) if size <= TILE_ELEMENTS else None
    product: Floats = np.matmul(weights, x.T, out=out)
    return product
