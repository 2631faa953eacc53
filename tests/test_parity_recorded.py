"""Our forward pass against what transformers computed, without transformers."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from support.parity import TOLERANCE, filled_cache, new_cache, run_in_passes
from support.recorded import FOLDER, NAMES, Recorded

from numpy_bloom.model import passes
from numpy_bloom.study.compare import deviation
from numpy_bloom.study.stages import stage_names


@pytest.fixture(params=NAMES)
def recorded(request: pytest.FixtureRequest, recorded_model: Callable[[str], Recorded]) -> Recorded:
    return recorded_model(request.param)


def test_recordings_are_all_tested() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.safetensors")) == sorted(NAMES)


def test_every_stage_is_recorded_and_of_healthy_size(recorded: Recorded) -> None:
    blocks = recorded.model.config.num_hidden_layers
    assert sorted(recorded.stages) == sorted(stage_names(blocks))
    for stage, array in recorded.stages.items():
        assert array.dtype == np.float32
        if not stage.endswith(("attn.mask", "attn.attn_scores")):
            assert 0.05 < array.std() < 10, stage
    patterns = recorded.stages["blocks.0.attn.pattern"]  # (N, T, S)
    assert np.median(patterns[:, -1].max(axis=-1)) > 2 / len(recorded.prompt)  # not uniform


def test_every_stage_agrees(recorded: Recorded) -> None:
    _, trace = recorded.bloom.trace(recorded.prompt)
    assert list(trace) == stage_names(recorded.model.config.num_hidden_layers)
    assert trace.first_divergence(recorded.stages, TOLERANCE) is None


def test_logits_of_a_text_agree(recorded: Recorded) -> None:
    """Which are computed without a cache."""
    logits = recorded.bloom(recorded.prompt)
    assert deviation("logits", logits, recorded.stages["logits"]) <= TOLERANCE


def test_slices_of_three_tokens_agree(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "SLICE_TOKENS", 3)
    _, trace = recorded.bloom.trace(recorded.prompt)
    assert trace.first_divergence(recorded.stages, TOLERANCE) is None


def test_greedy_continuation_is_identical(recorded: Recorded) -> None:
    tokens = recorded.bloom.generate(recorded.prompt, max_new_tokens=64)
    assert [token.id for token in tokens] == recorded.continuation


@pytest.mark.parametrize("lengths", [(1,) * 9, (3, 3, 3), (7, 2), (1, 7, 1), (2, 1, 5, 1)])
def test_passes_of_any_length_agree(recorded: Recorded, lengths: Sequence[int]) -> None:
    rest = len(recorded.prompt) - sum(lengths)
    logits = run_in_passes(recorded.model, recorded.prompt, [*lengths, *([rest] if rest else [])])
    assert deviation("logits", logits, recorded.stages["logits"]) <= TOLERANCE


def test_packed_sequences_agree(recorded: Recorded) -> None:
    """Prefixes of the prompt, packed; some have a part of them in their cache already."""
    model, reference = recorded.model, recorded.stages["logits"]
    sequences = [(0, 5), (4, 5), (0, 1), (3, 9), (8, 9)]  # tokens in the cache, tokens after it
    caches = [filled_cache(model, recorded.prompt[:old], 9) for old, _ in sequences]
    new = [np.array(recorded.prompt[old:end]) for old, end in sequences]
    expected = np.concatenate([reference[old:end] for old, end in sequences])
    logits = model.run(new, caches, last=[len(ids) for ids in new])
    assert deviation("logits", logits, expected) <= TOLERANCE
    assert [cache.length for cache in caches] == [end for _, end in sequences]


@pytest.mark.parametrize(("last", "rows"), [(None, [-1, 3]), ([3, 2], [-3, -2, -1, 2, 3])])
def test_only_the_last_positions_meet_the_vocabulary(
    recorded: Recorded, last: list[int] | None, rows: list[int]
) -> None:
    """By default one of each sequence."""
    model, prompt = recorded.model, recorded.prompt
    logits = model.run(
        [np.array(prompt), np.array(prompt[:4])],
        [new_cache(model, 20), new_cache(model, 4)],
        last=last,
    )
    expected = recorded.stages["logits"][rows]
    assert logits.shape == expected.shape
    assert deviation("logits", logits, expected) <= TOLERANCE
