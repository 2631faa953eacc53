"""Every format: its file is as documented, and its products are those of the numbers in it.

The references are decoders of our own and float64 arithmetic.
"""

from contextlib import closing

import numpy as np
import pytest
from support.formats import (
    Matrix,
    assert_product,
    normal,
    product,
    random_parts,
    tiles,
    written,
    written_apart,
)

from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.formats import FORMATS, base, int4
from numpy_bloom.weights.team import Team

SHAPES = [
    *((rows, columns) for rows in (1, 5, 96) for columns in (1, 2, 7, 64, 257)),
    *((7, 30), (39, 12), (45, 33)),  # rows that are no multiples of 16, some none of 4
    *((513, 66), (1030, 3)),  # more than a block of int4
]
TOKENS = [1, 2, 3, 16, 17, 130]  # int4 scales products of up to 16 tokens, weights for more


RANDOM = np.random.default_rng(0)


def random_shapes(seed: int) -> list[tuple[int, int]]:
    random = np.random.default_rng(seed)
    rows, columns = random.integers(1, 1200, 3), random.integers(1, 300, 3)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def as_float32(matrix: Matrix) -> Floats:
    """Widened tile by tile."""
    format = matrix.format
    rows = [format.widen(tile) for _, tile in tiles(matrix, random_parts(RANDOM, format))]
    return np.concatenate(rows)


@pytest.mark.parametrize("dtype", FORMATS)
def test_product(dtype: str) -> None:
    """Of each matrix with all numbers of tokens, and of others with one each."""
    some = [(shape, TOKENS) for shape in SHAPES]
    some += [(shape, [tokens]) for tokens in TOKENS for shape in random_shapes(tokens)]
    for shape, numbers in some:
        matrix = written(normal(shape, *shape), dtype, blocks=3)
        kept = matrix.content.copy()
        for tokens in numbers:
            x = normal(tokens, tokens, shape[1])
            before = x.copy()
            assert_product(product(matrix, x), x, matrix)
            assert_product(product(matrix, x, random_parts(RANDOM, matrix.format)), x, matrix)
            np.testing.assert_array_equal(x, before)
            np.testing.assert_array_equal(matrix.content, kept)


@pytest.mark.parametrize("dtype", FORMATS)
def test_widened(dtype: str) -> None:
    """Of a scale for each row and one for each column, one product is rounded before the other."""
    for shape in SHAPES + random_shapes(0):
        matrix = written(normal(shape, *shape), dtype)
        wide, expected = as_float32(matrix), matrix.decoded
        assert wide.shape == shape
        assert wide.dtype == np.float32
        if dtype == "int8":
            assert (np.abs(wide - expected) <= 2.0**-23 * np.abs(expected)).all()
        else:
            np.testing.assert_array_equal(wide, expected.astype(np.float32))


@pytest.mark.parametrize("dtype", FORMATS)
def test_bytes_do_not_depend_on_the_pieces(dtype: str) -> None:
    """In which a matrix is encoded, and are as many as the format says."""
    for shape in SHAPES + random_shapes(1):
        values = normal(shape, *shape)
        one, other = written(values, dtype, blocks=1), written(values, dtype, blocks=5)
        assert one.arrays.keys() == other.arrays.keys()
        for suffix, array in one.arrays.items():
            np.testing.assert_array_equal(array, other.arrays[suffix], strict=True)
        assert one.content.size == one.format.nbytes(*shape)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 16, 130])
def test_many_tiles(dtype: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One function multiplies tiles of all sizes, in any order; strips of int4 are of any size."""
    monkeypatch.setattr(base, "LEAST_ROWS", 1)
    monkeypatch.setattr(base, "TILE_ELEMENTS", 32 * 134)
    monkeypatch.setattr(int4, "STRIP_ELEMENTS", 134)
    matrix = written(normal(tokens, 79, 134), dtype)
    format = matrix.format
    assert format.tile_rows == max(32, format.block_rows)
    x = normal(tokens, tokens, 134)
    multiply = format.product(x)
    whole = product(matrix, x)
    assert_product(whole, x, matrix)
    blocks = range(0, 79, format.block_rows)
    starts = [*blocks[::2], *blocks[::-1]]
    for height in (format.block_rows, 2 * format.block_rows, 10_000):
        parts = [slice(start, min(start + height, 79)) for start in starts]
        for rows, tile in tiles(matrix, parts):
            y = written_apart(multiply, tile, tokens, rows.stop - rows.start)
            assert (np.abs(y - whole[:, rows]) <= 1e-5 * np.abs(x).sum(axis=1)[:, None]).all()


@pytest.mark.parametrize("dtype", FORMATS)
def test_tiles_have_the_size_that_is_asked_for(dtype: str) -> None:
    for columns in (1, 2, 1000, 4096, 14_336, 57_344, 1_000_000):
        least = max(base.LEAST_ROWS, FORMATS[dtype].block_rows)
        matrix = written(np.zeros((3, 2), np.float32), dtype)
        matrix.format.shape = (10, columns)
        tile_rows = matrix.format.tile_rows
        assert tile_rows % max(16, matrix.format.block_rows) == 0
        assert tile_rows * columns <= base.TILE_ELEMENTS or tile_rows == least


def test_bfloat16_packed_and_not_have_the_same_tiles() -> None:
    """Their results are then of the same bits."""
    values = normal(0, 64, 12)
    matrices = [written(values, dtype) for dtype in ("bfloat16", "bfloat16-packed")]
    for columns in (1, 100, 1024, 4096, 14_336, 57_344):
        for matrix in matrices:
            matrix.format.shape = (64, columns)
        assert len({matrix.format.tile_rows for matrix in matrices}) == 1


@pytest.mark.parametrize("dtype", FORMATS)
def test_wide_matrices(dtype: str) -> None:
    """In int4 they are widened in several strips, for the constants that are in use."""
    matrix = written(normal(1, 600, 1200), dtype)
    for tokens in (1, 17):
        x = normal(tokens, tokens, 1200)
        assert_product(product(matrix, x), x, matrix)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("columns", [12, 13])
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_stored_at_any_address(dtype: str, columns: int, offset: int) -> None:
    matrix = written(normal(offset, 31, columns), dtype)
    content = matrix.content
    buffer = np.zeros(content.size + 8, np.uint8)
    buffer[offset : offset + content.size] = content
    moved = np.frombuffer(memoryview(buffer)[offset : offset + content.size], np.uint8)
    tile = matrix.format.tile(moved, slice(0, 31))
    for tokens in (1, 3, 20):
        x = normal(tokens, tokens, columns)
        y = written_apart(matrix.format.product(x), tile, tokens, 31)
        assert_product(y, x, matrix)


@pytest.mark.parametrize("dtype", FORMATS)
def test_inputs_that_are_a_view(dtype: str) -> None:
    matrix = written(normal(3, 24, 10), dtype)
    for x in (normal(4, 10, 4).T, normal(5, 8, 20)[::2, ::2], normal(6, 40, 10)[::2]):
        assert_product(product(matrix, x), x, matrix)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("tokens", [1, 2, 17])
def test_several_threads_at_once(dtype: str, tokens: int) -> None:
    """Each of them has scratch arrays of its own."""
    rows = 4 * FORMATS[dtype].block_rows * (100 if FORMATS[dtype].block_rows == 1 else 1)
    matrix = written(normal(5, rows, 130), dtype)
    multiply = matrix.format.product(normal(tokens, tokens, 130))
    parts = [slice(rows // 4 * i, rows // 4 * (i + 1)) for i in range(4)]
    cut = [tile for _, tile in tiles(matrix, parts)]
    alone = [written_apart(multiply, tile, tokens, rows // 4) for tile in cut]

    def work(number: int) -> None:
        y = written_apart(multiply, cut[number % 4], tokens, rows // 4)
        np.testing.assert_array_equal(y, alone[number % 4])

    with closing(Team(4)) as team:
        team.run(work, iter(range(80)))
