"""The comparison with the recorded references finds each planted fault, and names its stage."""

from collections.abc import Callable

import numpy as np
import pytest
from support.faults import CACHE_FAULTS, FAULTS, Fault, other_residual_flag, tied_head
from support.parity import TOLERANCE, filled_cache, run_in_passes
from support.recorded import Recorded

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.running.model import Model
from numpy_bloom.study.compare import deviation, first_divergence

OpenRecorded = Callable[[str], Recorded]


def diverging_stage(recorded: Recorded) -> str:
    _, trace = recorded.bloom.trace(recorded.prompt)
    found = trace.first_divergence(recorded.stages, TOLERANCE)
    return found.stage if found else "none"


def in_passes_and_packed(model: Model, ids: list[int]) -> list[float]:
    """Deviations of a prompt in two passes, and of sequences packed, from single passes."""
    whole = run_in_passes(model, ids, [len(ids)])
    parts = run_in_passes(model, ids, [5, len(ids) - 5])
    caches = [filled_cache(model, ids[:old], capacity) for old, capacity in [(0, 6), (3, 20)]]
    packed = model.run([np.array(ids[:6]), np.array(ids[3:5])], caches, last=[6, 2])
    expected = np.concatenate([whole[:6], whole[3:5]])
    return [deviation("logits", parts, whole), deviation("logits", packed, expected)]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_found_at_its_stage(
    fault: Fault, recorded_model: OpenRecorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = recorded_model("heads12-bfloat16")
    assert diverging_stage(recorded) == "none"
    fault.plant(monkeypatch, recorded.model)
    assert diverging_stage(recorded) == fault.stage


def test_residual_flag_is_found_where_it_should_be_set(
    recorded_model: OpenRecorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = recorded_model("heads6-float16-postnorm")
    other_residual_flag(monkeypatch, recorded.model)
    assert diverging_stage(recorded) == "blocks.0.resid_mid"


def test_tied_head_is_found_where_it_should_not_be(
    recorded_model: OpenRecorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = recorded_model("heads2-float32-untied")
    tied_head(monkeypatch, recorded.model)
    assert diverging_stage(recorded) == "logits"


@pytest.mark.parametrize("name", CACHE_FAULTS)
def test_cache_fault_is_found_by_passes_or_packing(
    name: str, recorded_model: OpenRecorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = recorded_model("heads12-bfloat16")
    assert max(in_passes_and_packed(recorded.model, recorded.prompt)) <= TOLERANCE
    CACHE_FAULTS[name](monkeypatch, recorded.model)
    assert diverging_stage(recorded) == "none"
    assert max(in_passes_and_packed(recorded.model, recorded.prompt)) > TOLERANCE


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_a_number_is_a_divergence(value: float, recorded_model: OpenRecorded) -> None:
    recorded = recorded_model("heads2-float32-untied")
    ours = dict(recorded.stages)
    ours["logits"] = np.where(ours["logits"] == ours["logits"].max(), value, ours["logits"])
    found = first_divergence(ours, recorded.stages, TOLERANCE)
    assert found is not None and found.stage == "logits"


def test_missing_stage_is_an_error(recorded_model: OpenRecorded) -> None:
    recorded = recorded_model("heads2-float32-untied")
    _, trace = recorded.bloom.trace(recorded.prompt, names="blocks.*")
    with pytest.raises(NumpyBloomError, match="only one of the two has embed, ln_final"):
        trace.first_divergence(recorded.stages, TOLERANCE)
