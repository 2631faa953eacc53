"""What products take beside the weights: no more than is estimated before a run begins."""

import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import Checkpoint
from support.conversions import converted
from support.formats import normal, tiles, written

import numpy_bloom
from numpy_bloom.model.passes import SLICE_TOKENS
from numpy_bloom.running.memory import Needs, pass_bytes
from numpy_bloom.weights.formats import FORMATS

OBJECTS = 100_000  # of Python: threads, tiles, jobs


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("shape", [(2048, 256), (600, 1200), (512, 4096), (1024, 512), (33, 2000)])
def test_a_tile_takes_no_more_than_is_estimated(dtype: str, shape: tuple[int, int]) -> None:
    """In a thread that has no scratch arrays yet."""
    matrix = written(normal(0, *shape), dtype)
    format = matrix.format
    rows = min(shape[0], format.tile_rows)
    ((_, tile),) = tiles(matrix, [slice(0, rows)])
    for tokens in (1, 16, 17, 300):
        multiply = format.product(normal(1, tokens, shape[1]))
        y = np.zeros((tokens, rows), np.float32)
        thread = threading.Thread(target=multiply, args=(tile, y))
        tracemalloc.start()
        thread.start()
        thread.join()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak <= format.scratch_bytes(tokens) + OBJECTS


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_pass_takes_no_more_than_is_estimated(tmp_path: Path, dtype: str) -> None:
    """Of wide matrices and many tokens: the inputs of a product, which every format keeps in a way
    of its own, then take most of it."""
    checkpoint = Checkpoint(heads=2, hidden=512, blocks=1)
    with numpy_bloom.load(converted(checkpoint, tmp_path, dtype, head_dtype=dtype), threads=1) as m:
        for tokens in (749, 752):
            cache = m.model.prepare(Needs([tokens], pass_tokens=tokens, logit_rows=1))
            cache[0].append(0, *np.zeros((2, tokens, 2, 256), np.float32))  # its pages are there
            tracemalloc.start()
            m.model.run([np.arange(tokens) % 276], cache)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak <= m.model.working_bytes(tokens, tokens, logit_rows=1) + OBJECTS


@pytest.mark.parametrize("heads", [1, 16])
def test_few_queries_after_many_keys(tmp_path: Path, heads: int) -> None:
    """Their scores take no more than is estimated; one head's mask is as large as they are."""
    past, tokens = 20_000, SLICE_TOKENS
    with numpy_bloom.load(converted(Checkpoint(heads=heads, blocks=1), tmp_path), threads=1) as m:
        cache = m.model.prepare(Needs([past + tokens], pass_tokens=tokens, logit_rows=1))
        cache[0].append(0, *np.zeros((2, past, heads, 16 // heads), np.float32))
        cache[0].advance(past)
        tracemalloc.start()
        m.model.run([np.arange(tokens)], cache)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        estimate = pass_bytes(m.config, tokens, past + tokens, threads=1, scratch=0)
        assert peak <= estimate + OBJECTS
