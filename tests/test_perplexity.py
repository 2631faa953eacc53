"""A text by windows: every token is scored once, and passes keep within the dial."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import Checkpoint
from support.conversions import converted
from support.dials import EVERYTHING
from support.scores import IDS, TOLERANCE, from_logits, least_memory

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.errors import NumpyBloomError, OptionError
from numpy_bloom.perplexity import PASS_TOKENS, WINDOW, Windows, score_windows, windows_per_pass
from numpy_bloom.running.model import Model

pytestmark = pytest.mark.usefixtures("many_pieces")


def test_windows_score_every_token_once() -> None:
    """And with the context that they promise, whatever the lengths."""
    random.seed(3)
    for _ in range(3000):
        tokens = random.choice([2, 3, random.randrange(2, 60), random.randrange(2, 500)])
        size = random.choice([2, 3, random.randrange(2, 60), random.randrange(2, 600)])
        stride = random.choice([None, 1, size - 1, random.randrange(1, size)])
        windows = Windows(tokens, size, stride)
        least_context = windows.size - windows.stride
        assert windows.size == min(size, tokens)
        assert windows.stride in (stride, size // 2, windows.size // 2, windows.size - 1)
        found = []
        for number, window in enumerate(windows):
            assert window.begin == number * windows.stride
            assert window.scored >= 1
            first = window.end - window.scored
            assert first - window.begin >= (least_context if number else 1)
            assert window.end - window.begin <= windows.size
            found += range(first, window.end)
        assert found == list(range(1, tokens))
        assert len(list(windows)) == len(windows)


def test_default_windows() -> None:
    windows = Windows(10_000)
    assert (windows.size, windows.stride) == (WINDOW, WINDOW // 2) == (2048, 1024)
    assert [*Windows(1000)] == [(0, 1000, 999)]


@pytest.mark.parametrize(
    ("size", "stride", "told"),
    [
        (1, None, "window is 1; expected a value in [2, inf), whole"),
        (2.5, None, "window is 2.5"),
        (8, 0, "stride is 0; expected a value in [1, 7]"),
        (8, 8, "stride is 8; expected a value in [1, 7]"),
        (8, -1, "stride is -1"),
    ],
)
def test_windows_out_of_range(size: Any, stride: Any, told: str) -> None:
    with pytest.raises(OptionError) as error:
        Windows(100, size, stride)
    assert told in str(error.value)


@pytest.mark.parametrize("tokens", [0, 1])
def test_texts_that_are_too_short(tokens: int) -> None:
    with pytest.raises(NumpyBloomError, match=f"too short: {tokens} token.*at least two"):
        Windows(tokens)


@pytest.mark.parametrize(("size", "stride"), [(2, 1), (8, 3), (20, 19), (30, None), (200, None)])
def test_scores_by_windows(chunked_model: Bloom, size: int, stride: int | None) -> None:
    windows = Windows(len(IDS), size, stride)
    expected = [from_logits(chunked_model, IDS[begin:end])[-n:] for begin, end, n in windows]
    for together in (1, 2, 100):
        passes = list(score_windows(chunked_model.model, IDS, windows, together))
        assert len(passes) == -(-len(windows) // together)
        assert np.abs(np.concatenate(passes) - np.concatenate(expected)).max() < TOLERANCE


def activations(model: Model, windows: Windows, count: int) -> int:
    context = windows.size - 1
    targets = context + (count - 1) * windows.stride
    return model.working_bytes(count * context, context, target_rows=targets)


def test_windows_in_a_pass(chunked_folder: Path) -> None:
    """As many as the dial allows: first activations and weights halve what is left, then all
    weights stay in memory, and at last all windows go in one pass."""
    windows = Windows(len(IDS), 8)
    least, nbytes = least_memory(chunked_folder, 1, [windows.size - 1])
    chosen: list[int] = []
    for memory in [least, *range(least + 1, least + 2 * nbytes, nbytes // 20), EVERYTHING]:
        with numpy_bloom.load(chunked_folder, memory=memory, threads=1) as opened:
            model = opened.model
            stream = model.stream
            together = windows_per_pass(model, windows)
            passes = score_windows(model, IDS, windows, together)
            next(passes)
            if together not in chosen:
                assert 1 + len(list(passes)) == -(-len(windows) // together)
            chosen.append(together)
            left = memory - model.store.vector_bytes
            if activations(model, windows, 1) + stream.nbytes <= left:
                assert stream.bytes_pinned == stream.nbytes
                assert together == len(windows) or (
                    activations(model, windows, together + 1) + stream.nbytes > left
                )
            else:
                half = (left - stream.buffer_bytes) / 2
                assert together == 1 or activations(model, windows, together) <= half
                assert activations(model, windows, together + 1) > half
    assert chosen[0] == 1
    assert chosen[-1] == len(windows) == 17
    assert len(set(chosen)) > 3


def test_a_pass_has_a_limit(chunked_model: Bloom) -> None:
    assert windows_per_pass(chunked_model.model, Windows(10**6, 1025)) == PASS_TOKENS // 1024
    assert windows_per_pass(chunked_model.model, Windows(10**6, PASS_TOKENS)) == 1
    assert windows_per_pass(chunked_model.model, Windows(10**6, 2 * PASS_TOKENS)) == 1


def test_damaged_weights(tmp_path: Path) -> None:
    checkpoint = Checkpoint(heads=4, hidden=32, lm_head="different")
    checkpoint.tensors["lm_head.weight"][7] = 3e38
    checkpoint.tensors["ln_f.bias"][:] = 3e3
    with (
        numpy_bloom.load(converted(checkpoint, tmp_path), threads=2) as model,
        pytest.raises(NumpyBloomError, match="not finite"),
    ):
        list(score_windows(model.model, IDS, Windows(len(IDS)), 1))
