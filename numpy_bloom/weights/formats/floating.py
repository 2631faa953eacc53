"""Matrices of float32, float16 and bfloat16 numbers, as checkpoints have them.

bfloat16 is the upper half of a float32. Two neighbours in a row make a uint32 whose shifted low
half is the even column's float32 and whose masked high half is the odd column's: one integer
operation for each column, in whole registers. Even and odd columns are multiplied apart, by the
even and odd inputs. float16 takes two operations more: its 5 exponent bits are moved to the end
of float32's 8, and a factor of 2^112 makes up for the smaller bias, exactly, subnormals included.
"""

from abc import abstractmethod

import numpy as np
import numpy.typing as npt

from numpy_bloom.weights.dtypes import STORED, Floats, Stored, all_finite, narrow, widen
from numpy_bloom.weights.formats.base import (
    FEW_TOKENS,
    Bytes,
    Encoder,
    Format,
    Product,
    Scratch,
    filled_up,
    multiply_into,
    scratch,
    tall_product,
)
from numpy_bloom.weights.safetensors_file import Spec

Words = npt.NDArray[np.uint32]

# Arrays, for NumPy takes longer to begin with a number.
_SIXTEEN = np.array(16, dtype=np.uint32)
_HIGH_HALF = np.array(0xFFFF0000, dtype=np.uint32)
_FLOAT16_BITS = np.array(0x8FFFE000, dtype=np.uint32)
FLOAT16_SCALE = np.float32(2.0**112)


class Floating(Format):
    """Numbers of a floating type, row after row. A tile is an array of them."""

    @classmethod
    def nbytes(cls, rows: int, columns: int) -> int:
        return rows * columns * STORED[cls.stored_dtype].itemsize

    @classmethod
    def arrays(cls, shape: tuple[int, ...]) -> dict[str, Spec]:
        return {"": (cls.stored_dtype, shape)}

    def tile(self, content: Bytes, rows: slice) -> Stored:
        return content.view(STORED[self.stored_dtype]).reshape(-1, self.shape[1])

    def widen(self, tile: Stored) -> Floats:
        return widen(tile, self.stored_dtype)

    def product(self, x: Floats) -> Product:
        x = filled_up(x)

        def multiply(tile: Stored, out: Floats) -> None:
            multiply_into(out, self.widen(tile), x)

        return multiply


class Float32(Floating):
    """Numbers of float32."""

    dtype = stored_dtype = "float32"


class _SixteenBits(Floating):
    """Numbers of sixteen bits, multiplied in pairs."""

    def product(self, x: Floats) -> Product:
        if x.shape[1] % 2:
            return super().product(x)
        x = filled_up(x)
        even, odd = np.ascontiguousarray(x[:, ::2]), np.ascontiguousarray(x[:, 1::2])
        few = list(zip(even, odd, strict=True)) if len(x) <= FEW_TOKENS else []

        def multiply(tile: Stored, out: Floats) -> None:
            words = tile.view(np.uint32)  # (rows, inputs / 2)
            wide = scratch(words.size).reshape(words.shape)
            if few:
                low = self._low(words, wide)
                for place, (token, _) in enumerate(few):
                    low.dot(token, out[place])
                high = self._high(words, wide)
                for place, (_, token) in enumerate(few):
                    out[place] += high.dot(token)
            else:  # added up first, for `out` is another way round: its numbers lie far apart
                product = tall_product(self._low(words, wide), even)  # (rows, T)
                product += tall_product(self._high(words, wide), odd, Scratch.SECOND_PRODUCT)
                out[:] = product[:, : len(out)].T

        return multiply

    @staticmethod
    @abstractmethod
    def _low(words: Words, wide: Words) -> Floats:
        """The low halves as float32, in the place of `wide`."""

    @staticmethod
    @abstractmethod
    def _high(words: Words, wide: Words) -> Floats:
        """The high halves."""


class BFloat16(_SixteenBits):
    """Numbers of bfloat16."""

    dtype = stored_dtype = "bfloat16"

    @staticmethod
    def _low(words: Words, wide: Words) -> Floats:
        return np.left_shift(words, _SIXTEEN, out=wide).view(np.float32)

    @staticmethod
    def _high(words: Words, wide: Words) -> Floats:
        return np.bitwise_and(words, _HIGH_HALF, out=wide).view(np.float32)


class Float16(_SixteenBits):
    """Numbers of float16."""

    dtype = stored_dtype = "float16"

    @staticmethod
    def _low(words: Words, wide: Words) -> Floats:
        return Float16._high(np.left_shift(words, _SIXTEEN, out=wide), wide)

    @staticmethod
    def _high(words: Words, wide: Words) -> Floats:
        """The arithmetic shift keeps the sign in place; its copies behind it are masked."""
        np.right_shift(words.view(np.int32), 3, out=wide.view(np.int32))
        values: Floats = np.bitwise_and(wide, _FLOAT16_BITS, out=wide).view(np.float32)
        values *= FLOAT16_SCALE
        return values


class FloatingEncoder(Encoder):
    """Rounds to a floating type."""

    def __init__(self, shape: tuple[int, ...], target: type[Floating]) -> None:
        super().__init__(shape)
        self._target = target

    @property
    def format(self) -> type[Format]:
        return self._target

    def encode(self, values: Stored, dtype: str) -> Stored:
        return rounded(values, dtype, self._target.stored_dtype)


def rounded(values: Stored, dtype: str, target: str) -> Stored:
    """Finite values of one floating type in another.

    Raises:
        OverflowError: they do not fit.
    """
    if dtype == target:
        return values
    result = narrow(widen(values, dtype), target)
    if not all_finite(result, target):
        raise OverflowError(f"values too large for {target}")
    return result
