"""Matrices of floating types: every pattern of sixteen bits is multiplied as what it stands for."""

import numpy as np
import pytest
from support.checkpoints import Array, Floats, as_float32
from support.formats import Matrix, product, written

from numpy_bloom.weights.dtypes import FLOATING, STORED
from numpy_bloom.weights.formats import FORMATS

SIXTEEN_BITS = ["float16", "bfloat16"]


def finite_patterns(dtype: str) -> Array:
    """All of them, as one row."""
    patterns = np.arange(1 << 16, dtype=np.uint16).view(STORED[dtype])
    return patterns[np.isfinite(as_float32(patterns))]


def with_patterns(patterns: Array, columns: int) -> Array:
    """Rows of so many columns that hold all patterns, filled up with zeros."""
    stored = np.zeros(-(-len(patterns) // columns) * columns, patterns.dtype)
    stored[: len(patterns)] = patterns
    return stored.reshape(-1, columns)


def one_hot(columns: int, tokens: int, first: int) -> Floats:
    """Token t is 1 at column `first` + t and 0 elsewhere."""
    x = np.zeros((tokens, columns), np.float32)
    x[np.arange(tokens), (first + np.arange(tokens)) % columns] = 1
    return x


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("columns", [64, 65])
@pytest.mark.parametrize("tokens", [1, 2, 3, 16])
def test_every_finite_pattern_comes_out_exactly(dtype: str, columns: int, tokens: int) -> None:
    """x is 1 in one column, so that the product is that column: all else adds zeros."""
    stored = with_patterns(finite_patterns(dtype), columns)
    matrix, expected = written(stored, dtype, dtype), as_float32(stored)
    for first in range(0, columns, tokens):
        x = one_hot(columns, tokens, first)
        y = product(matrix, x)
        for token, column in enumerate(x.argmax(axis=1)):
            np.testing.assert_array_equal(y[token], expected[:, column])


@pytest.mark.parametrize("columns", [8, 9])
@pytest.mark.parametrize("tokens", [1, 3])
def test_ends_of_float16(columns: int, tokens: int) -> None:
    """Subnormals, zeros and the largest numbers, from the definition of the format."""
    bits = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x7BFF, 0xFBFF]
    values = [0, 0, 2**-24, -(2**-24), 1023 * 2**-24, -1023 * 2**-24, 2**-14, -(2**-14)]
    values += [65504, -65504]
    for column in range(columns):
        stored = np.zeros((len(bits), columns), np.float16)
        stored[:, column] = np.array(bits, np.uint16).view(np.float16)
        x = np.zeros((tokens, columns), np.float32)
        x[-1, column] = 1
        y = product(Matrix(FORMATS["float16"](stored.shape, {}), {"": stored}), x)
        assert y[-1].tolist() == values
        assert not y[:-1].any()


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("source", FLOATING)
def test_encoding_rounds_to_nearest(source: str, dtype: str) -> None:
    """By no more than half of what the last digit is worth."""
    values = np.random.default_rng(0).normal(size=(8, 9)).astype(np.float32)
    original = written(values, source).decoded
    found = written(written(values, source).arrays[""], dtype, source).decoded
    if dtype in ("float32", source):
        np.testing.assert_array_equal(found, original)
    else:
        half = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
        assert (np.abs(found - original) <= half * np.abs(original)).all()


# Halfway from the largest number to what would be the next one.
LIMITS = {"float16": 65_520, "bfloat16": (2 - 2.0**-8) * 2.0**127}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "bfloat16-packed"])
def test_what_does_not_fit_is_refused(dtype: str) -> None:
    limit = np.float32(LIMITS[dtype.removesuffix("-packed")])
    for sign in (1, -1):
        values = np.full((8, 4), sign * np.nextafter(limit, np.float32(0)))
        assert np.isfinite(written(values, dtype).decoded).all()
        values[3, 2] = sign * limit
        with pytest.raises(OverflowError, match="values too large for"):
            written(values, dtype)
