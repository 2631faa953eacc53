"""Products with a tile of stored weights, which is widened in the cache of one core.

A tile is some rows of a matrix. Its bytes come from memory once, are widened into a scratch
array that stays in the core's cache, and meet BLAS there. docs/performance.md has the figures
behind each choice.

bfloat16 is the upper half of a float32. Two neighbours in a row make a uint32 whose shifted low
half is the even column's float32 and whose masked high half is the odd column's: one integer
operation for each column, in whole registers. Even and odd columns are multiplied apart, by the
even and odd inputs. float16 takes two operations more: its 5 exponent bits are moved to the end
of float32's 8, and a factor of 2^112 makes up for the smaller bias, exactly, subnormals included.
"""

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from numpy_bloom.weights.dtypes import Floats, Stored, widen

TILE_ELEMENTS = 1 << 19
"""Weights in a tile, so that half of them fit a core's cache as float32."""

Words = npt.NDArray[np.uint32]
Product = Callable[[Stored, Floats], None]
"""Multiplies a tile (rows, inputs) with the x at hand, into a part (T, rows) of the result."""

_HIGH_HALF = np.uint32(0xFFFF0000)
_FLOAT16_BITS = np.uint32(0x8FFFE000)
_FLOAT16_SCALE = np.float32(2.0**112)

_thread = threading.local()


def tile_rows(columns: int) -> int:
    """Rows of a tile. They depend on the matrix alone, so that results do not depend on how its
    rows are spread over chunks and threads."""
    return max(1, TILE_ELEMENTS // columns)


def scratch_bytes(columns: int, tokens: int) -> int:
    """Memory that one thread needs for a matrix with this many columns: a tile, widened in two
    steps (only half of it is, where the number of columns is even), and two products with it."""
    return 4 * (2 * TILE_ELEMENTS + 2 * tile_rows(columns) * tokens)


def product(x: Floats, dtype: str) -> Product:
    """A function that multiplies tiles of weights of a stored type with x.

    Args:
        x: (T, inputs) float32.
    """
    halves = _HALVES.get(dtype)
    if halves is None or x.shape[1] % 2:

        def multiply_widened(tile: Stored, out: Floats) -> None:
            if len(out) == 1:
                np.dot(widen(tile, dtype), x[0], out=out[0])
            else:
                out[:] = (widen(tile, dtype) @ x.T).T

        return multiply_widened

    even, odd = np.ascontiguousarray(x[:, ::2]), np.ascontiguousarray(x[:, 1::2])
    low, high = halves

    def multiply(tile: Stored, out: Floats) -> None:
        words = tile.view(np.uint32)  # (rows, inputs / 2)
        scratch = _scratch(words.size).reshape(words.shape)
        if len(out) == 1:  # vectors: BLAS is slower with matrices of one column
            np.dot(low(words, scratch), even[0], out=out[0])
            out[0] += np.dot(high(words, scratch), odd[0])
        else:  # a tall tile times a narrow xᵀ: for few tokens twice as fast as x times tileᵀ
            y = low(words, scratch) @ even.T  # (rows, T)
            y += high(words, scratch) @ odd.T
            out[:] = y.T

    return multiply


def _scratch(size: int) -> Words:
    """An array that lives as long as its thread: a new one would cost page faults every time."""
    words: Words | None = getattr(_thread, "words", None)
    if words is None or words.size < size:
        words = _thread.words = np.empty(size, dtype=np.uint32)
    return words[:size]


def _bfloat16_low(words: Words, scratch: Words) -> Floats:
    return np.left_shift(words, 16, out=scratch).view(np.float32)


def _bfloat16_high(words: Words, scratch: Words) -> Floats:
    return np.bitwise_and(words, _HIGH_HALF, out=scratch).view(np.float32)


def _float16_low(words: Words, scratch: Words) -> Floats:
    return _float16_high(np.left_shift(words, 16, out=scratch), scratch)


def _float16_high(words: Words, scratch: Words) -> Floats:
    """The arithmetic shift keeps the sign in place and leaves copies of it, which are masked."""
    np.right_shift(words.view(np.int32), 3, out=scratch.view(np.int32))
    values: Floats = np.bitwise_and(scratch, _FLOAT16_BITS, out=scratch).view(np.float32)
    values *= _FLOAT16_SCALE
    return values


_HALVES = {
    "bfloat16": (_bfloat16_low, _bfloat16_high),
    "float16": (_float16_low, _float16_high),
}
