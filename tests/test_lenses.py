"""What lenses say, computed once more in float64 from the checkpoint's own arrays."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import Checkpoint, as_float32
from support.conversions import converted
from support.recorded import FOLDER

import numpy_bloom
from conversion import convert
from numpy_bloom.bloom import Bloom
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.study.cost import costs
from numpy_bloom.study.lenses import attributions, logit_lens, residual_stream
from numpy_bloom.weights.formats import base

CHECKPOINT = Checkpoint(hidden=24, heads=6, blocks=3, dtype="bfloat16", lm_head="different")
IDS = np.arange(20) * 7 % 250
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(CHECKPOINT, tmp_path_factory.mktemp("lenses"))


@pytest.fixture
def model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bloom]:
    monkeypatch.setattr(base, "LEAST_ROWS", 1)
    monkeypatch.setattr(base, "TILE_ELEMENTS", 24 * 32)  # the head has several tiles
    with numpy_bloom.load(folder, threads=2) as model:
        yield model


def tensor(name: str) -> Any:
    return as_float32(CHECKPOINT.tensors[name]).astype(np.float64)


def final_norm(x: Any) -> Any:
    """Layer norm ln_f, in the dtype of x."""
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return centred / deviation * tensor("ln_f.weight") + tensor("ln_f.bias")


@pytest.mark.parametrize("top", [1, 5, 1000])
def test_logit_lens_is_the_softmax_of_each_layer(model: Bloom, top: int) -> None:
    _, trace = model.trace(IDS)
    lens = logit_lens(trace, top)
    layers = np.stack(residual_stream(trace)).astype(np.float64)  # (L + 1, T, H)
    logits = final_norm(layers) @ tensor("lm_head.weight").T
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    order = np.argsort(-log_probabilities, axis=-1, kind="stable")[..., :top]
    expected = np.take_along_axis(log_probabilities, order, axis=-1)
    assert lens.log_probabilities.dtype == lens.entropy.dtype == np.float32
    assert lens.log_probabilities.shape == expected.shape
    assert np.abs(lens.log_probabilities - expected).max() < TOLERANCE
    chosen = np.take_along_axis(log_probabilities, lens.token_ids, axis=-1)
    assert np.abs(chosen - expected).max() < TOLERANCE  # their tokens, but for ties
    entropy = -(np.exp(log_probabilities) * log_probabilities).sum(axis=-1)
    assert np.abs(lens.entropy - entropy).max() < TOLERANCE
    assert lens.entropy.min() > 0.5  # says something


def test_the_last_layer_of_the_lens_says_what_the_model_says(model: Bloom) -> None:
    logits, trace = model.trace(IDS)
    assert np.array_equal(logit_lens(trace, 1).token_ids[-1, :, 0], logits.argmax(axis=-1))


@pytest.mark.parametrize(("position", "token_id"), [(-1, None), (3, 17), (0, 275)])
def test_parts_of_a_logit_add_up_to_it(model: Bloom, position: int, token_id: int | None) -> None:
    logits, trace = model.trace(IDS)
    token_ids = None if token_id is None else [token_id]
    (parts,) = attributions(trace, [position], token_ids)
    expected = logits[position].argmax() if token_id is None else token_id
    assert parts.token_id == expected
    assert parts.logit == logits[position, expected]
    sums = [parts.heads.sum(), parts.attention_biases.sum(), parts.mlps.sum()]
    assert abs(parts.embedding + sum(sums) + parts.final_bias - parts.logit) < 1e-4
    assert parts.heads.shape == (3, 6)
    assert min(np.abs(parts.heads).max(), np.abs(parts.mlps).max(), abs(parts.embedding)) > 0.01


def test_each_part_of_a_logit_is_what_is_missing_without_it(model: Bloom) -> None:
    """With the last layer norm's mean and scale as they were."""
    _, trace = model.trace(IDS)
    (parts,) = attributions(trace, [-1], [9])
    last = trace["blocks.2.resid_post"][-1].astype(np.float64)
    scale = np.sqrt(last.var() + 1e-5)
    direction = tensor("lm_head.weight")[9] * tensor("ln_f.weight") / scale

    def adds(part: Any) -> float:
        return float((part - part.mean()) @ direction)

    for block in range(3):
        dense = tensor(f"h.{block}.self_attention.dense.weight")
        for head in range(6):
            columns = slice(4 * head, 4 * head + 4)
            gathered = trace[f"blocks.{block}.attn.z"][-1, head].astype(np.float64)
            assert abs(parts.heads[block, head] - adds(dense[:, columns] @ gathered)) < TOLERANCE
        bias = tensor(f"h.{block}.self_attention.dense.bias")
        assert abs(parts.attention_biases[block] - adds(bias)) < TOLERANCE
        assert abs(parts.mlps[block] - adds(trace[f"blocks.{block}.mlp_out"][-1])) < TOLERANCE
    assert abs(parts.embedding - adds(trace["blocks.0.resid_pre"][-1])) < TOLERANCE
    assert abs(parts.final_bias - tensor("lm_head.weight")[9] @ tensor("ln_f.bias")) < TOLERANCE


def test_what_cannot_be_taken_apart_is_told(model: Bloom, tmp_path: Path) -> None:
    _, trace = model.trace(IDS, names="blocks.*.resid_post")
    with pytest.raises(NumpyBloomError, match=r"the trace lacks blocks\.0\.resid_pre"):
        logit_lens(trace)
    with pytest.raises(NumpyBloomError, match="the trace lacks logits"):
        attributions(trace, [-1])
    convert(FOLDER / "heads6-float16-postnorm", tmp_path / "postnorm")
    with numpy_bloom.load(tmp_path / "postnorm", threads=1) as postnorm:
        _, trace = postnorm.trace(IDS[:3])
        with pytest.raises(NumpyBloomError, match="no sum over all blocks"):
            attributions(trace, [-1])


def test_what_is_out_of_range_is_told(model: Bloom) -> None:
    _, trace = model.trace(IDS)
    for position in (20, -21):
        with pytest.raises(NumpyBloomError, match=rf"position {position} is not among the 20"):
            attributions(trace, [position])
    for token_id in (-1, model.config.vocab_size):
        with pytest.raises(NumpyBloomError, match=f"token id {token_id} is out of range"):
            attributions(trace, [-1], [token_id])
    with pytest.raises(NumpyBloomError, match="top is 0"):
        logit_lens(trace, 0)


def test_the_bill_counts_every_weight_and_every_visible_pair(model: Bloom) -> None:
    _, trace = model.trace(IDS[:7])
    *blocks, head = costs(trace)
    assert [cost.name for cost in (*blocks, head)] == ["blocks.0", "blocks.1", "blocks.2", "head"]
    weights = 12 * 24**2
    pairs = 7 * 8 // 2  # of a query and a key that it may see
    for cost in blocks:
        assert cost.flops == 2 * 7 * weights + 4 * 24 * pairs
        assert cost.weight_bytes == 2 * weights
        assert cost.seconds is not None and cost.seconds > 0
    assert head.flops == 2 * 7 * 24 * model.config.vocab_size
    assert head.weight_bytes == 2 * 24 * model.config.vocab_size
    _, step = next(model.trace_generation(IDS[:7], max_new_tokens=1))
    *_, head = costs(step)  # of the last token alone
    assert head.flops == 2 * 24 * model.config.vocab_size
