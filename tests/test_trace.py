"""Traces: complete, without effect on the result, and each stage what its formula says."""

import resource
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import Checkpoint
from support.conversions import converted
from support.recorded import Recorded

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.errors import NumpyBloomError, OptionError
from numpy_bloom.model import passes
from numpy_bloom.study import stages
from numpy_bloom.study.capture import Arrays
from numpy_bloom.study.lenses import attributions
from numpy_bloom.study.stages import BY_KEYS, local_name, stage_names, stage_shape
from numpy_bloom.study.trace import Trace

IDS = np.arange(70) * 7 % 250  # three slices of tokens
NAMES = stage_names(2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(Checkpoint(hidden=24, heads=6), tmp_path_factory.mktemp("trace"))


@pytest.fixture
def model(folder: Path) -> Iterator[Bloom]:
    with numpy_bloom.load(folder, threads=2) as model:
        yield model


# --- what is traced -------------------------------------------------------------------------------


def test_logits_are_those_of_a_pass_that_nobody_looks_at(model: Bloom) -> None:
    logits, trace = model.trace(IDS)
    assert np.array_equal(logits, model(IDS))
    assert np.array_equal(logits, trace["logits"])


def test_every_stage_has_the_name_and_the_shape_of_the_list(model: Bloom) -> None:
    _, trace = model.trace(IDS)
    assert list(trace) == NAMES
    for name, array in trace.items():
        assert array.shape == stage_shape(name, model.config, len(IDS), len(IDS)), name
        assert array.dtype == np.float32


def test_the_residual_stream_is_the_sum_of_what_is_added(model: Bloom) -> None:
    _, trace = model.trace(IDS)
    for block in ("blocks.0.", "blocks.1."):
        before, after = trace[f"{block}resid_pre"], trace[f"{block}resid_mid"]
        assert np.array_equal(before + trace[f"{block}attn_out"], after)
        assert np.array_equal(after + trace[f"{block}mlp_out"], trace[f"{block}resid_post"])


def test_a_trace_cannot_be_changed(model: Bloom) -> None:
    _, trace = model.trace(IDS)
    with pytest.raises(ValueError, match="read-only"):
        trace["logits"][0] = 0


def test_only_what_was_asked_for_is_kept(model: Bloom) -> None:
    _, trace = model.trace(IDS, names="blocks.*.attn.z, logits")
    assert list(trace) == ["blocks.0.attn.z", "blocks.1.attn.z", "logits"]


def test_a_name_that_is_no_stage_is_refused(model: Bloom) -> None:
    with pytest.raises(
        NumpyBloomError, match=r"no stage is called 'blocks\.2\.attn\.z'.* 2 blocks"
    ):
        model.trace(IDS, names="logits,blocks.2.attn.z")


def test_a_trace_that_does_not_fit_the_memory_is_refused(folder: Path, tmp_path: Path) -> None:
    few = "blocks.0.resid_pre"
    with numpy_bloom.load(folder, threads=1) as model:
        model.trace(IDS, names=few)
        enough = model.model.memory_for_all
    with numpy_bloom.load(folder, memory=enough, threads=1) as model:
        model.trace(IDS, names=few)
        with pytest.raises(NumpyBloomError, match="this run needs at least"):
            model.trace(IDS)
        with pytest.raises(NumpyBloomError, match="this run needs at least"):
            model.trace_generation(IDS, max_new_tokens=2).__next__()
        model.trace(IDS, names="blocks.*.resid_pre", folder=tmp_path / "trace")  # one at a time


# --- the list -------------------------------------------------------------------------------------


def test_the_source_of_each_stage_is_where_it_is_handed_on() -> None:
    root = Path(stages.__file__).parents[1]
    for stage in (*stages.BEFORE_BLOCKS, *stages.IN_BLOCK, *stages.AFTER_BLOCKS):
        path, number = stages.source(stage).split(":")
        line = (root / path).read_text().splitlines()[int(number) - 1]
        assert f'tap("{stage.name}"' in line


# --- folders --------------------------------------------------------------------------------------


def test_a_folder_gets_the_same_arrays(model: Bloom, tmp_path: Path) -> None:
    _, kept = model.trace(IDS)
    logits, trace = model.trace(IDS, folder=tmp_path / "new" / "trace")
    assert list(trace) == NAMES
    for name in NAMES:
        assert np.array_equal(trace[name], kept[name])
        assert np.array_equal(np.load(tmp_path / "new" / "trace" / f"{name}.npy"), kept[name])
    assert trace.check() is None
    assert np.array_equal(logits, kept["logits"])


def test_a_folder_in_use_is_refused(model: Bloom, tmp_path: Path) -> None:
    model.trace(IDS, folder=tmp_path, names="embed")
    with pytest.raises(NumpyBloomError, match="holds arrays already; choose another folder"):
        model.trace(IDS, folder=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NumpyBloomError, match=r"cannot write .*file"):
        model.trace(IDS, folder=tmp_path / "file")


def test_arrays_of_any_order_are_written(tmp_path: Path) -> None:
    arrays, array = Arrays(tmp_path), np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    orders = {"C": array, "F": np.asfortranarray(array), "mixed": array.swapaxes(0, 1)}
    for name, ordered in orders.items():
        arrays.keep(name, ordered)
        assert np.array_equal(arrays[name], ordered)


def test_a_pass_that_fails_leaves_no_arrays(model: Bloom, tmp_path: Path) -> None:
    """As on a full disk: an array that is too large for this process breaks off."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = 128 + 4 * len(IDS) * model.config.hidden_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    told = r"^cannot write .*attn\.qk\.npy: File too large$"
    try:
        with pytest.raises(NumpyBloomError, match=told):
            model.trace(IDS, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
    assert np.array_equal(model.trace(IDS)[0], model(IDS))  # the model can go on


def test_memory_of_a_folder_trace_does_not_grow_with_depth(tmp_path: Path) -> None:
    def peak(blocks: int) -> int:
        made = Checkpoint(hidden=24, heads=6, blocks=blocks)
        with numpy_bloom.load(converted(made, tmp_path / str(blocks)), threads=1) as model:
            model(IDS)  # pins the weights
            tracemalloc.start()
            try:
                model.trace(IDS, folder=tmp_path / f"trace{blocks}")
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    shallow, deep = peak(4), peak(24)
    block = sum(path.stat().st_size for path in (tmp_path / "trace4").glob("blocks.0.*"))
    assert block > 500_000
    assert deep - shallow < block / 4


# --- checking -------------------------------------------------------------------------------------


@pytest.mark.parametrize("slice_tokens", [3, 32])
@pytest.mark.parametrize("name", ["heads12-bfloat16", "heads2-float32-untied"])
def test_every_stage_is_what_its_formula_gives(
    name: str, slice_tokens: int, recorded_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "SLICE_TOKENS", slice_tokens)
    bloom = recorded_model(name).bloom
    _, trace = bloom.trace(np.arange(20) * 3)
    assert trace.check() is None


def test_residuals_after_the_norms_are_checked_too(recorded_model: Any) -> None:
    _, trace = recorded_model("heads6-float16-postnorm").bloom.trace(np.arange(20))
    assert trace.check() is None


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_that_is_something_else_is_named(model: Bloom, name: str) -> None:
    """By one unit in the last place of one number, in the last slice."""

    def edit(array: Any) -> Any:
        place = (..., -1, 0)
        array[place] = np.nextafter(array[place], np.float32(9))
        return array

    _, trace = model.trace(IDS, edits={name: edit})
    found = trace.check()
    assert found is not None
    assert found.stage == name


def test_what_lacks_its_inputs_cannot_be_checked(model: Bloom) -> None:
    _, trace = model.trace(IDS, names="blocks.0.attn.pattern")
    with pytest.raises(NumpyBloomError, match="trace more names"):
        trace.check()
    _, trace = model.trace(IDS, names="blocks.0.attn.attn_scores,blocks.0.attn.k,*.pattern")
    assert trace.check() is None


# --- comparing ------------------------------------------------------------------------------------


def test_float64_tells_rounding_from_error(recorded_model: Any) -> None:
    """The recorded arrays are transformers'."""
    recorded: Recorded = recorded_model("heads12-bfloat16")
    _, trace = recorded.bloom.trace(recorded.prompt)
    rows = trace.diff(recorded.stages, exact=True)
    assert [row.stage for row in rows] == list(trace)
    for row in rows:
        assert row.ours_from_exact is not None and row.other_from_exact is not None
        assert row.deviation < 1e-5
        assert row.ours_from_exact < 1e-5
        assert row.other_from_exact < 1e-5
    assert max(row.ours_from_exact or 0 for row in rows) > 1e-8  # it is another computation

    wrong = {"blocks.1.mlp.post": recorded.stages["blocks.1.mlp.post"] * np.float32(1.001)}
    (row,) = trace.diff(wrong, exact=True)
    assert row.ours_from_exact is not None and row.other_from_exact is not None
    assert row.other_from_exact > 100 * row.ours_from_exact


def test_what_cannot_be_compared_is_told(model: Bloom) -> None:
    _, trace = model.trace(IDS)
    with pytest.raises(NumpyBloomError, match="no stage in common"):
        trace.diff({"logit": trace["logits"]})
    with pytest.raises(NumpyBloomError, match="logits has shape"):
        trace.diff({"logits": trace["logits"][1:]})


# --- step by step ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 3}])
def test_a_generation_is_traced_step_by_step(model: Bloom, options: Any) -> None:
    expected = [token.id for token in model.generate(IDS[:40], max_new_tokens=5, **options)]
    found = list(model.trace_generation(IDS[:40], max_new_tokens=5, **options))
    assert [token.id for token, _ in found] == expected
    _, whole = model.trace([*IDS[:40], *expected[:-1]])
    begin = 0
    for _, trace in found:
        assert trace.check() is None
        assert trace.past == begin
        end = begin + len(trace.token_ids)
        for name in trace:
            ours, all_at_once = trace[name], whole[name]
            if local_name(name) in BY_KEYS:
                ours, all_at_once = ours[..., : begin + 1], all_at_once[..., begin:end, : begin + 1]
            else:
                all_at_once = all_at_once[end - len(ours) : end]
            assert np.allclose(ours, all_at_once, atol=2e-5), name
        begin = end


def test_a_text_may_have_more_tokens_than_python_has_frames(model: Bloom) -> None:
    _, trace = model.trace(IDS[:1], names="embed")
    last = trace
    for _ in range(sys.getrecursionlimit()):
        last = Trace(trace.model, trace.token_ids, trace._arrays, [], logit_rows=1, previous=last)
    assert last.past == sys.getrecursionlimit()
    assert np.array_equal(last.so_far("embed"), np.repeat(trace["embed"], last.past + 1, axis=0))


def test_a_step_that_is_something_else_is_named(model: Bloom) -> None:
    steps = [trace for _, trace in model.trace_generation(IDS[:5], max_new_tokens=3)]
    steps[-1].previous = steps[0]  # a token is missing in between
    found = steps[-1].check()
    assert found is not None
    assert found.stage == "blocks.0.attn.qk"


def test_float64_of_a_first_pass_whose_last_position_alone_has_logits(model: Bloom) -> None:
    _, first = next(model.trace_generation(IDS[:9], max_new_tokens=2))
    rows = first.diff(first, exact=True)
    assert max(row.ours_from_exact or 0 for row in rows) < 1e-5
    with pytest.raises(NumpyBloomError, match="logits of its last position only"):
        attributions(first, [0])


@pytest.mark.parametrize(
    "option",
    [{"draft_model": "prompt-lookup"}, {"prompt_cache": "file"}, {"num_samples": 2}],
)
def test_options_with_which_a_token_is_no_pass_are_refused(model: Bloom, option: Any) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(option))} cannot be given"):
        model.trace_generation(IDS, **option)
