"""int8 and int4: nearest integers, scales as documented, columns of outliers that cost nothing."""

from collections.abc import Callable

import numpy as np
import pytest
from support.checkpoints import Array, Floats, as_float32, stored
from support.formats import Doubles, Matrix, product, written

from numpy_bloom.weights.formats import int4

INTEGERS = ["int8", "int4"]
SHAPES = [(1, 1), (1, 9), (7, 1), (5, 64), (33, 257), (96, 30), (512, 40), (513, 130)]
Values = Callable[[np.random.Generator, tuple[int, int]], Floats]


def normal(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return random.normal(size=shape).astype(np.float32)


def zeros(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return np.zeros(shape, np.float32)


def zero_rows(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    values = normal(random, shape)
    values[::3] = 0
    return values


def zero_columns(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    values = normal(random, shape)
    values[:, shape[1] // 3 : shape[1] // 3 + 40] = 0  # among them a whole group of int4
    return values


def constant_rows(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    values = np.empty(shape, np.float32)
    values[:] = normal(random, (shape[0], 1))
    return values


def outlier(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    values = normal(random, shape)
    values[:, shape[1] // 2] *= 1e6
    return values


def one_large(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Of its row and of its column all else is small."""
    values = normal(random, shape)
    values[shape[0] // 2, shape[1] // 2] = -1e9
    return values


def tiny(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Most are subnormal."""
    return normal(random, shape) * np.float32(3e-39)


def all_sizes(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    magnitudes = 10.0 ** random.uniform(-44, 38, shape)
    return (magnitudes * random.choice([-1, 1], shape)).astype(np.float32)


def largest(random: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return random.choice([-1, 1], shape).astype(np.float32) * np.finfo(np.float32).max


KINDS: list[Values] = [
    *(normal, zeros, zero_rows, zero_columns, constant_rows, outlier, one_large, tiny),
    *(all_sizes, largest),
]


def assert_nearest(matrix: Matrix, original: Floats) -> None:
    """Half a step off at most: and a little for integers up to 127 that are computed in float32
    (three roundings of 2⁻²⁴ each), where a quotient falls in the middle of two; and for quotients
    below float32's range, of weights that are 10³⁸ times smaller than others of their column."""
    column = np.abs(original).max(axis=0, initial=0).astype(np.float64)
    allowed = (0.5 + 127 * 2.0**-22) * matrix.parts[1] + 2.0**-140 * column
    assert (np.abs(matrix.decoded - original) <= allowed).all()


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("source", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("values", KINDS)
def test_no_weight_is_off_by_more_than_half_a_step(dtype: str, source: str, values: Values) -> None:
    random = np.random.default_rng(2)
    shapes = SHAPES + [tuple(random.integers(1, 600, 2).tolist()) for _ in range(4)]
    for shape in shapes:
        original = values(random, shape)
        if source == "float16":
            original = np.clip(original, -65_504, 65_504)
        given: Array = stored(original, source)
        original = as_float32(given)
        matrix = written(given, dtype, source)
        assert_nearest(matrix, original)
        np.testing.assert_array_equal(matrix.decoded[:, ~original.any(axis=0)], 0)


@pytest.mark.parametrize("strip", [1, 10_000])
def test_int4_in_strips(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many groups are encoded at a time, and with the number that is in use."""
    original = normal(np.random.default_rng(10), (513, 1150))
    expected = written(original, "int4")
    assert_nearest(expected, original)
    monkeypatch.setattr(int4, "STRIP_ELEMENTS", strip)
    np.testing.assert_array_equal(written(original, "int4").content, expected.content)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("values", KINDS)
def test_scales_of_columns(dtype: str, values: Values) -> None:
    original = values(np.random.default_rng(3), (600, 70))
    scale = written(original, dtype).arrays[".column_scale"]
    np.testing.assert_array_equal(scale, np.abs(original).max(axis=0))


def test_scales_of_int8_rows() -> None:
    """The largest of what is left when columns are scaled becomes 127, and nothing -128."""
    original = normal(np.random.default_rng(4), (50, 60)) * np.float32(10) ** np.arange(-30, 30)
    original[7] = 0
    arrays = written(original, "int8").arrays
    left = np.abs(original / np.abs(original).max(axis=0)).max(axis=1)
    np.testing.assert_allclose(arrays[".row_scale"][left > 0], left[left > 0] / 127, rtol=1e-6)
    largest = np.abs(arrays[""].astype(int)).max(axis=1)
    assert largest.tolist() == [127] * 7 + [0] + [127] * 42
    assert arrays[""].min() == -127


def test_scales_of_int4_groups() -> None:
    """The least float16 whose 7.5-fold covers what is left of the group: both ends are used."""
    spread = np.float32(10) ** (np.arange(150) % 60 - 30)
    original = normal(np.random.default_rng(5), (520, 150)) * spread
    matrix = written(original, "int4")
    column_scale = np.abs(original).max(axis=0)
    left, scale = np.abs(original) / column_scale, matrix.parts[1] / column_scale
    begins = [0, 25, 50, 75, 100, 125]  # halves of 75 columns, each in three groups
    for begin in begins:
        group = slice(begin, begin + 25)
        most = left[:, group].max(axis=1)
        found = scale[:, group].max(axis=1).astype(np.float16)
        np.testing.assert_allclose(scale[:, group], np.repeat(found[:, None], 25, 1), rtol=1e-6)
        assert (7.5 * found.astype(np.float64) >= most * (1 - 1e-6)).all()
        below = np.nextafter(found, np.float16(0)).astype(np.float64)
        assert (7.5 * below <= most * (1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", INTEGERS)
def test_products_of_matrices_without_scale(dtype: str) -> None:
    """All zeros, and rows of them: exactly zero, not NaN."""
    x = normal(np.random.default_rng(7), (3, 40))
    values = normal(np.random.default_rng(8), (20, 40))
    values[5:9] = 0
    assert not product(written(np.zeros((20, 40), np.float32), dtype), x).any()
    y = product(written(values, dtype), x)
    assert np.isfinite(y).all()
    if dtype == "int4":  # half a level is the least, and its sum with the offset may be rounded
        assert (np.abs(y[:, 5:9]) <= 1e-5).all()
    else:
        assert not y[:, 5:9].any()


# --- columns of outliers --------------------------------------------------------------------------


def relative_error(y: Floats | Doubles, x: Floats, weights: Floats) -> float:
    expected = x.astype(np.float64) @ weights.astype(np.float64).T
    return float(np.linalg.norm(y - expected) / np.linalg.norm(expected))


def scaled_by_rows(weights: Floats) -> Doubles:
    """int8 with a scale for each row alone."""
    scale = np.abs(weights).max(axis=1, keepdims=True).astype(np.float64) / 127
    return np.rint(weights / scale) * scale


def scaled_by_groups(weights: Floats) -> Doubles:
    """int4 with a scale for each 32 weights of a row alone."""
    grouped = weights.reshape(len(weights), -1, 32).astype(np.float64)
    scale = np.abs(grouped).max(axis=2, keepdims=True) / 7.5
    levels = np.clip(np.floor(grouped / scale), -8, 7) + 0.5
    return (levels * scale).reshape(weights.shape)


@pytest.mark.parametrize(
    ("dtype", "alone", "worse"), [("int8", scaled_by_rows, 3), ("int4", scaled_by_groups, 1.3)]
)
def test_columns_of_outliers(dtype: str, alone: Callable[[Floats], Doubles], worse: float) -> None:
    """Errors are of the size that they have without outliers. They would not be, if columns had no
    scales: with fewer scales of one kind, but with these it is no better for ordinary weights."""
    random = np.random.default_rng(9)
    plain = normal(random, (512, 640))
    outliers = plain.copy()
    outliers[:, random.choice(640, 3, replace=False)] *= 40  # 0.5 % of the columns
    x = normal(random, (32, 640))

    def error(weights: Floats) -> float:
        return relative_error(product(written(weights, dtype), x), x, weights)

    def error_alone(weights: Floats) -> float:
        return relative_error(x.astype(np.float64) @ alone(weights).T, x, weights)

    assert error(outliers) < 1.2 * error(plain)
    assert error_alone(outliers) > worse * error_alone(plain)
    assert error(plain) < 1.2 * error_alone(plain)
