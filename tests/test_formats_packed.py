"""bfloat16 in twelve bits: every bit comes back, and products are those of bfloat16."""

import numpy as np
import pytest
from support.checkpoints import Array, Floats, as_float32, stored
from support.formats import Matrix, packed_patterns, product, random_parts, tiles, written

from numpy_bloom.weights.formats import packed

PACKED, PLAIN = "bfloat16-packed", "bfloat16"
RANDOM = np.random.default_rng(0)
HEIGHTS = [7, 8, 11, 15, 16, 23, 31, 32, 43, 45, 47, 95]  # some are no multiple of 4


def patterns_of(matrix: Matrix, *, whole: bool = False) -> Array:
    """As the package unpacks them. To widen bfloat16 is to shift its bits, those of NaN too."""
    parts = [] if whole else random_parts(RANDOM, matrix.format)
    wide = [matrix.format.widen(tile).view(np.uint32) for _, tile in tiles(matrix, parts)]
    bits = np.concatenate(wide)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


def assert_unpacked(matrix: Matrix, patterns: Array, dtype: str = PACKED) -> None:
    """By the package and by a decoder of our own."""
    assert matrix.format.dtype == dtype
    for whole in (True, False):
        np.testing.assert_array_equal(patterns_of(matrix, whole=whole), patterns, strict=True)
    found = matrix.arrays[""]
    if dtype == PACKED:
        found = packed_patterns(patterns.shape, matrix.arrays)
        exceptions = matrix.arrays[".exceptions"]
        np.testing.assert_array_equal(exceptions, np.unique(exceptions))  # sorted
    np.testing.assert_array_equal(found, patterns)


def packable(shape: tuple[int, ...], seed: int = 0, exceptions: float = 0.001) -> Array:
    """A Gaussian in bfloat16, with some weights of other sizes, the first and the last of blocks
    among them."""
    random = np.random.default_rng([*shape, seed])
    values = random.normal(size=shape).astype(np.float32)
    other = random.random(shape) < exceptions
    if exceptions:
        other[::16, 0] = other[15::16, -1] = other[-1, -1] = True
    sizes = random.choice(np.array([1e-30, 1e20, 0, -1e-7], np.float32), shape)
    return stored(np.where(other, values * sizes, values), PLAIN)


def without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have matrices packed that are mostly exceptions."""
    monkeypatch.setattr(packed, "MOST_EXCEPTIONS", 1.0)


@pytest.mark.parametrize("base", range(121))
def test_every_pattern_of_the_sixteen_exponents(base: int) -> None:
    """Without exceptions, wherever the exponents begin; two signs, and 128 fractions."""
    patterns = np.arange(1 << 16, dtype=np.uint16)
    upper = patterns >> 8 & 0x7F
    patterns = RANDOM.permutation(patterns[(upper >= base) & (upper < base + 8)]).reshape(64, 64)
    matrix = written(patterns, PACKED, PLAIN)
    assert matrix.arrays[".exponent_base"].tolist() == [base]
    assert matrix.arrays[".exceptions"].size == 0
    assert_unpacked(matrix, patterns)


@pytest.mark.parametrize("shape", [(256, 256), (128, 512), (64, 1024), (1024, 64), (16, 4096)])
def test_every_pattern_among_exceptions(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All 65,536 of them: most are neither packed nor numbers of one size."""
    without_limit(monkeypatch)
    patterns = RANDOM.permutation(np.arange(1 << 16, dtype=np.uint16)).reshape(shape)
    assert_unpacked(written(patterns, PACKED, PLAIN), patterns)


@pytest.mark.parametrize("rows", HEIGHTS)
@pytest.mark.parametrize("columns", [1, 2, 5, 64])
def test_any_shape(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    without_limit(monkeypatch)
    patterns = packable((rows, columns), exceptions=0.1)
    matrix = written(patterns, PACKED, PLAIN)
    assert_unpacked(matrix, patterns)
    assert matrix.content.size == -(-rows // 4) * 4 * columns * 3 // 2


MATRICES = {
    "NaN": np.array([0x7F81, 0xFF81, 0x7FC0, 0xFFFF], np.uint16),
    "one NaN": np.array([0x7FC1], np.uint16),
    "inf and NaN": np.array([0x7F80, 0xFF80, 0x7FC0, 0x7F81], np.uint16),
    "zeros": np.array([0], np.uint16),
    "zeros of both signs": np.array([0, 0x8000], np.uint16),
    "subnormals": np.array([0x0001, 0x8001, 0x007F, 0x807F, 0x0040, 0], np.uint16),
    "largest": np.array([0x7F7F, 0xFF7F], np.uint16),
}


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("shape", [(16, 8), (23, 31), (160, 12)])
def test_matrices_of_one_kind(kind: str, shape: tuple[int, int]) -> None:
    patterns = RANDOM.choice(MATRICES[kind], shape)
    matrix = written(patterns, PACKED, PLAIN)
    assert_unpacked(matrix, patterns)
    assert matrix.arrays[".exceptions"].size == 0


@pytest.mark.parametrize("shape", [(16, 8), (23, 31), (160, 1200)])
def test_random_bits_stay_as_they_are(shape: tuple[int, int]) -> None:
    patterns = RANDOM.integers(0, 1 << 16, shape, dtype=np.uint16)
    matrix = written(patterns, PACKED, PLAIN)
    assert_unpacked(matrix, patterns, PLAIN)
    assert matrix.nbytes == patterns.nbytes
    np.testing.assert_array_equal(matrix.arrays[""], patterns)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 9, 10])
def test_few_rows_that_would_not_shrink_stay_as_they_are(rows: int) -> None:
    patterns = packable((rows, 40), exceptions=0)
    matrix = written(patterns, PACKED, PLAIN)
    assert_unpacked(matrix, patterns, PLAIN)


def test_as_many_exceptions_as_are_allowed() -> None:
    """One of 128 weights; with one more the matrix stays as it is."""
    patterns = np.full((64, 64), 0x3F80, np.uint16)
    patterns.reshape(-1)[5 : 5 + 2 * 32 : 2] = 0x0040
    matrix = written(patterns, PACKED, PLAIN)
    assert_unpacked(matrix, patterns)
    expected = [place << 16 | 0x0040 for place in range(5, 5 + 2 * 32, 2)]
    assert matrix.arrays[".exceptions"].tolist() == expected
    patterns[-1, -1] = 0x7F7F
    assert_unpacked(written(patterns, PACKED, PLAIN), patterns, PLAIN)


def test_size() -> None:
    """Of a Gaussian with outliers; 12 of 16 bits, and 64 for each exception."""
    matrix = written(packable((512, 1024)), PACKED, PLAIN)
    assert matrix.nbytes <= 0.77 * 512 * 1024 * 2
    assert 512 * 1024 / 2000 < matrix.arrays[".exceptions"].size < 512 * 1024 / 500


@pytest.mark.parametrize("source", ["float32", "float16"])
def test_other_sources_are_rounded_to_bfloat16(source: str) -> None:
    values = stored(RANDOM.normal(size=(40, 50)).astype(np.float32), source)
    plain = written(values, PLAIN, source)
    assert_unpacked(written(values, PACKED, source), plain.arrays[""])


@pytest.mark.parametrize("tokens", [1, 2, 16, 17, 130])
def test_products_are_those_of_bfloat16(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, in tiles of any number of blocks."""
    without_limit(monkeypatch)
    for rows in HEIGHTS:
        for columns in (5, 64, 150):
            patterns = packable((rows, columns))
            tight, plain = (written(patterns, dtype, PLAIN) for dtype in (PACKED, PLAIN))
            assert tight.format.dtype == PACKED
            x: Floats = RANDOM.normal(size=(tokens, columns)).astype(np.float32)
            for parts in ([], random_parts(RANDOM, tight.format)):
                with np.errstate(over="ignore", invalid="ignore"):
                    found, expected = product(tight, x, parts), product(plain, x, parts)
                np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_an_exception_belongs_to_one_tile() -> None:
    """Those at the last and first weights of neighbouring tiles, and nowhere else."""
    patterns = packable((96, 300), exceptions=0)
    for row in range(0, 96, 16):
        patterns[row, 0], patterns[row + 15, -1] = 0x7F00 + row, 0x0001 + row
    matrix = written(patterns, PACKED, PLAIN)
    assert matrix.arrays[".exceptions"].size >= 12
    for start in range(0, 96, 16):
        for stop in range(start + 16, 97, 16):
            ((rows, tile),) = tiles(matrix, [slice(start, stop)])
            wide = matrix.format.widen(tile)
            np.testing.assert_array_equal(wide, as_float32(patterns[rows]))
