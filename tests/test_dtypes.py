"""Stored types: widening is exact for every pattern, narrowing rounds to nearest, ties to even.

The references are slow and of another kind: exact fractions, and the definition of the formats
(IEEE 754: sign, exponent, fraction).
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from numpy_bloom.weights.dtypes import FLOATING, STORED, all_finite, narrow, widen


class Format(NamedTuple):
    """A binary format of 16 bits."""

    exponent_bits: int
    fraction_bits: int

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    def value(self, bits: int) -> Fraction | float:
        """The number that a pattern stands for; inf and NaN as floats."""
        sign = -1 if bits >> 15 else 1
        exponent = (bits >> self.fraction_bits) & ((1 << self.exponent_bits) - 1)
        fraction = bits & ((1 << self.fraction_bits) - 1)
        if exponent == (1 << self.exponent_bits) - 1:
            return math.nan if fraction else sign * math.inf
        whole = 1 if exponent else 0
        scale = Fraction(2) ** (max(exponent, 1) - self.bias - self.fraction_bits)
        return sign * ((whole << self.fraction_bits) + fraction) * scale

    @property
    def largest(self) -> int:
        """The pattern of the largest finite number."""
        return (((1 << self.exponent_bits) - 1) << self.fraction_bits) - 1

    def nearest(self, value: float) -> int:
        """The pattern nearest to a finite number; of two equally near ones the even one."""
        sign = 0x8000 if math.copysign(1, value) < 0 else 0
        magnitude = abs(Fraction(value))
        low, high = 0, self.largest  # positive patterns are in the order of their values
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.value(middle) <= magnitude else (low, middle - 1)
        below = Fraction(self.value(low))
        # Above the largest number, inf stands where the next one would.
        step = Fraction(self.value(low)) - Fraction(self.value(low - 1)) if low else 0
        above = Fraction(self.value(low + 1)) if low < self.largest else below + step
        twice = 2 * magnitude
        up = twice > below + above or (twice == below + above and low % 2 == 1)
        return sign | (low + 1 if up else low)


FORMATS = {"float16": Format(5, 10), "bfloat16": Format(8, 7)}
PATTERNS = np.arange(1 << 16, dtype=np.uint16)


def bits_of(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint16]:
    return values.view(np.uint16)


@pytest.mark.parametrize("dtype", FORMATS)
def test_all_patterns_widen_exactly(dtype: str) -> None:
    kind = FORMATS[dtype]
    wide = widen(PATTERNS.view(STORED[dtype]), dtype)
    assert wide.dtype == np.float32
    for bits, value in zip(PATTERNS.tolist(), wide.tolist(), strict=True):
        expected = kind.value(bits)
        if isinstance(expected, float):
            assert math.isnan(value) if math.isnan(expected) else value == expected
        else:
            assert Fraction(value) == expected
            assert math.copysign(1, value) == (-1 if bits >> 15 else 1)


def test_bfloat16_keeps_the_bits_of_nan() -> None:
    wide = widen(PATTERNS, "bfloat16")
    np.testing.assert_array_equal(wide.view(np.uint32), PATTERNS.astype(np.uint32) << 16)


@pytest.mark.parametrize("dtype", FORMATS)
def test_all_finite_patterns_survive_the_way_back(dtype: str) -> None:
    stored = PATTERNS.view(STORED[dtype])
    back = narrow(widen(stored, dtype), dtype)
    assert back.dtype == STORED[dtype]
    number = ~np.isnan(widen(stored, dtype))
    np.testing.assert_array_equal(bits_of(back)[number], PATTERNS[number])
    assert np.isnan(widen(back, dtype)[~number]).all()


def values_to_round(kind: Format) -> npt.NDArray[np.float32]:
    """Random numbers of every size, and those at, just below and just above every kind of tie."""
    random = np.random.default_rng(0)
    bits = random.integers(0, 1 << 32, 1000, dtype=np.uint64).astype(np.uint32)
    anything = bits.view(np.float32)
    spread = random.normal(size=1000) * 2.0 ** random.integers(-30, 20, 1000)
    patterns = [0, 1, 2, 3, (1 << kind.fraction_bits) - 1, 1 << kind.fraction_bits]
    patterns += [kind.largest - 1, *random.integers(0, kind.largest, 500).tolist()]
    ties = [float(Fraction(kind.value(p)) + Fraction(kind.value(p + 1))) / 2 for p in patterns]
    step = Fraction(kind.value(kind.largest)) - Fraction(kind.value(kind.largest - 1))
    ties += [float(kind.value(kind.largest) + step / 2)]  # from here on it is inf
    around = np.array(ties, dtype=np.float32)
    around = np.concatenate(
        [around, np.nextafter(around, 0), np.nextafter(around, np.float32(np.inf))]
    )
    values = np.concatenate([anything, spread.astype(np.float32), around, -around])
    return values[np.isfinite(values)]


@pytest.mark.parametrize("dtype", FORMATS)
def test_rounding(dtype: str) -> None:
    values = values_to_round(FORMATS[dtype])
    found = bits_of(narrow(values, dtype))
    expected = [FORMATS[dtype].nearest(value) for value in values.tolist()]
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.uint16))


@pytest.mark.parametrize("dtype", FORMATS)
def test_special_values_narrow_to_themselves(dtype: str) -> None:
    kind = FORMATS[dtype]
    # The last NaN's payload lies only in bits that are cut off.
    nans = np.array([0x7FC00000, 0xFFC00000, 0x7F800001], dtype=np.uint32).view(np.float32)
    assert np.isnan(widen(narrow(nans, dtype), dtype)).all()
    rest = np.array([np.inf, -np.inf, 0.0, -0.0, 3.4028235e38, -3.4028235e38], dtype=np.float32)
    infinite = kind.largest + 1
    expected = [infinite, 0x8000 | infinite, 0, 0x8000, infinite, 0x8000 | infinite]
    np.testing.assert_array_equal(bits_of(narrow(rest, dtype)), expected)


@pytest.mark.parametrize("dtype", FLOATING)
def test_shape_is_kept(dtype: str) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)[:, ::2]
    np.testing.assert_array_equal(widen(narrow(values, dtype), dtype), values, strict=True)


def test_float32_is_kept() -> None:
    values = np.arange(3, dtype=np.float32)
    assert widen(values, "float32") is values
    assert narrow(values, "float32") is values


@pytest.mark.parametrize("dtype", FORMATS)
def test_finiteness_of_every_pattern(dtype: str) -> None:
    stored = PATTERNS.view(STORED[dtype])
    finite = np.array([math.isfinite(FORMATS[dtype].value(bits)) for bits in PATTERNS.tolist()])
    assert all_finite(stored[finite], dtype)
    for place in np.flatnonzero(~finite).tolist():
        assert not all_finite(stored[place : place + 1], dtype)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found(dtype: str, wrong: float) -> None:
    values = np.zeros((5, 7), dtype=np.float32)
    assert all_finite(narrow(values, dtype), dtype)
    values[3, 4] = wrong
    assert not all_finite(narrow(values, dtype), dtype)
