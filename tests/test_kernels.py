"""Products with tiles of stored weights, against float64 arithmetic on the widened weights.

Sixteen-bit weights are widened a bit pattern at a time, so every finite pattern is looked at.
"""

from contextlib import closing

import numpy as np
import numpy.typing as npt
import pytest

from numpy_bloom.weights.dtypes import STORED, Floats, Stored, narrow, widen
from numpy_bloom.weights.kernels import Product, product, tile_rows
from numpy_bloom.weights.team import Team

DTYPES = list(STORED)
SIXTEEN_BITS = ["float16", "bfloat16"]


def wide(stored: Stored, dtype: str) -> npt.NDArray[np.float64]:
    return widen(stored, dtype).astype(np.float64)


def multiplied(multiply: Product, stored: Stored, tokens: int) -> Floats:
    """A product (T, rows), written into a part of a larger result as `linear` does it."""
    rows = len(stored)
    whole = np.full((tokens, rows + 5), np.nan, np.float32)
    multiply(stored, whole[:, 2 : 2 + rows])
    assert np.isnan(whole[:, :2]).all()
    assert np.isnan(whole[:, 2 + rows :]).all()
    return whole[:, 2 : 2 + rows]


def assert_close(y: Floats, weights: npt.NDArray[np.float64], x: Floats) -> None:
    """Whatever the order of a sum of n products in float32, it is off by at most n · 2⁻²⁴ (a bit
    more for n · 2⁻²⁴ near 1) of the sum of their magnitudes (Higham 2002, section 3.1). One more
    rounding is granted for the two halves of the columns, which are summed apart."""
    unit = 2.0**-24 * (x.shape[1] + 2)
    inputs = x.astype(np.float64)
    bound = unit * (np.abs(inputs) @ np.abs(weights).T)
    assert (np.abs(y - inputs @ weights.T) <= bound).all()


def finite_patterns(dtype: str) -> Stored:
    """All of them, as one row."""
    patterns = np.arange(1 << 16, dtype=np.uint16).view(STORED[dtype])
    return patterns[np.isfinite(widen(patterns, dtype))]


def with_patterns(patterns: Stored, dtype: str, columns: int) -> Stored:
    """Rows of so many columns that hold all patterns, filled up with zeros."""
    stored = np.zeros(-(-len(patterns) // columns) * columns, STORED[dtype])
    stored[: len(patterns)] = patterns
    return stored.reshape(-1, columns)


def one_hot(columns: int, tokens: int, first: int) -> Floats:
    """Token t is 1 at column `first` + t and 0 elsewhere."""
    x = np.zeros((tokens, columns), np.float32)
    x[np.arange(tokens), (first + np.arange(tokens)) % columns] = 1
    return x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 16, 130])
@pytest.mark.parametrize("columns", [1, 2, 7, 64, 257])
@pytest.mark.parametrize("rows", [1, 5, 96])
def test_product(dtype: str, tokens: int, columns: int, rows: int) -> None:
    random = np.random.default_rng([tokens, columns, rows])
    stored = narrow(random.normal(size=(rows, columns)).astype(np.float32), dtype)
    x = random.normal(size=(tokens, columns)).astype(np.float32)
    before, kept = x.copy(), stored.copy()
    y = multiplied(product(x, dtype), stored, tokens)
    assert_close(y, wide(stored, dtype), x)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(stored, kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 16, 130])
def test_more_rows_than_a_tile(dtype: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A product takes any number of rows, and one function many tiles, large and small."""
    monkeypatch.setattr("numpy_bloom.weights.kernels.TILE_ELEMENTS", 6 * 34)
    assert tile_rows(34) == 6
    random = np.random.default_rng(tokens)
    stored = narrow(random.normal(size=(41, 34)).astype(np.float32), dtype)
    x = random.normal(size=(tokens, 34)).astype(np.float32)
    multiply = product(x, dtype)
    for rows in (stored, stored[:6], stored[:1], stored[6:12], stored[36:], stored):
        y = multiplied(multiply, rows, tokens)
        assert_close(y, wide(rows, dtype), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [12, 13])
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_stored_at_any_address(dtype: str, columns: int, offset: int) -> None:
    random = np.random.default_rng(offset)
    aligned = narrow(random.normal(size=(9, columns)).astype(np.float32), dtype)
    buffer = np.zeros(aligned.nbytes + 8, np.uint8)
    buffer[offset : offset + aligned.nbytes] = aligned.reshape(-1).view(np.uint8)
    content = memoryview(buffer)[offset : offset + aligned.nbytes]
    stored = np.frombuffer(content, STORED[dtype]).reshape(9, columns)
    for tokens in (1, 3):
        x = random.normal(size=(tokens, columns)).astype(np.float32)
        y = multiplied(product(x, dtype), stored, tokens)
        assert_close(y, wide(aligned, dtype), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_that_are_a_view(dtype: str) -> None:
    random = np.random.default_rng(3)
    stored = narrow(random.normal(size=(8, 10)).astype(np.float32), dtype)
    for x in (
        random.normal(size=(10, 4)).astype(np.float32).T,
        random.normal(size=(8, 20)).astype(np.float32)[::2, ::2],
    ):
        assert_close(multiplied(product(x, dtype), stored, 4), wide(stored, dtype), x)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("columns", [64, 65])
@pytest.mark.parametrize("tokens", [1, 2, 3, 16])
def test_every_finite_pattern_comes_out_exactly(dtype: str, columns: int, tokens: int) -> None:
    """x is 1 in one column, so that the product is that column: all else adds zeros."""
    stored = with_patterns(finite_patterns(dtype), dtype, columns)
    expected = widen(stored, dtype)
    for first in range(0, columns, tokens):
        x = one_hot(columns, tokens, first)
        y = multiplied(product(x, dtype), stored, tokens)
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
        y = multiplied(product(x, "float16"), stored, tokens)
        assert y[-1].tolist() == values
        assert not y[:-1].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_threads_at_once(dtype: str) -> None:
    """Each of them has scratch arrays of its own."""
    random = np.random.default_rng(5)
    tiles = [narrow(random.normal(size=(300, 512)).astype(np.float32), dtype) for _ in range(4)]
    multiply = product(random.normal(size=(2, 512)).astype(np.float32), dtype)
    alone = [multiplied(multiply, tile, 2) for tile in tiles]

    def work(number: int) -> None:
        np.testing.assert_array_equal(multiplied(multiply, tiles[number % 4], 2), alone[number % 4])

    with closing(Team(4)) as team:
        team.run(work, iter(range(200)))
