"""Stages changed on their way, and variants of a text in one pass."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import Checkpoint
from support.conversions import converted
from support.dials import in_many_pieces, model_folder

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.study.stages import stage_names
from numpy_bloom.study.variants import ablate_head

IDS = np.arange(69) * 7 % 250  # no slice of 64 tokens ends where a variant does
HEADS = 6
NAMES = stage_names(2)
TOLERANCE = 1e-5
"""Of logits of some 5: rows of other variants may lead BLAS to sum in another order."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(Checkpoint(hidden=24, heads=HEADS), tmp_path_factory.mktemp("edits"))


@pytest.fixture
def model(folder: Path) -> Iterator[Bloom]:
    with numpy_bloom.load(folder, threads=2) as model:
        yield model


def unchanged(array: Any) -> Any:
    return array


def halved(array: Any) -> Any:
    return array / np.float32(2)


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_that_changes_nothing_changes_nothing(model: Bloom, name: str) -> None:
    logits, trace = model.trace(IDS, edits={name: unchanged})
    assert np.array_equal(logits, model(IDS))
    assert trace.check() is None


def test_the_model_goes_on_with_what_an_edit_returns(model: Bloom) -> None:
    name = "blocks.1.attn_out"
    logits, trace = model.trace(IDS, edits={name: halved})
    _, before = model.trace(IDS)
    assert np.array_equal(trace[name], before[name] / np.float32(2))
    expected = before["blocks.1.resid_pre"] + before[name] / np.float32(2)
    assert np.array_equal(trace["blocks.1.resid_mid"], expected)
    assert np.array_equal(logits, trace["logits"])
    assert not np.allclose(logits, before["logits"], atol=1e-2)


def test_an_edit_may_change_its_array_in_place(model: Bloom) -> None:
    def in_place(z: Any) -> Any:
        z[:, 2] = 0
        return z

    def anew(z: Any) -> Any:
        return np.where(np.arange(HEADS)[:, None] == 2, np.float32(0), z)

    name = "blocks.0.attn.z"
    logits = [model.trace(IDS, edits={name: edit})[0] for edit in (in_place, anew, ablate_head(2))]
    assert np.array_equal(logits[0], logits[1])
    assert np.array_equal(logits[0], logits[2])


@pytest.mark.parametrize(
    ("edit", "returned"),
    [
        (lambda _z: None, "NoneType"),
        (lambda z: z[1:], r"float32 \(68, 6, 4\)"),
        (lambda z: z.astype(np.float64), r"float64 \(69, 6, 4\)"),
    ],
)
def test_an_edit_that_returns_something_else_is_told(
    model: Bloom, edit: Any, returned: str
) -> None:
    told = rf"edit of blocks\.0\.attn\.z returned {returned}; expected float32 \(69, 6, 4\)"
    with pytest.raises(NumpyBloomError, match=told):
        model.trace(IDS, edits={"blocks.0.attn.z": edit})


def test_an_edit_that_runs_its_model_is_told(model: Bloom) -> None:
    """It would wait for the pass that it is within. Afterwards the model goes on."""

    def asks(use: Any) -> Any:
        def edit(z: Any) -> Any:
            use()
            return z

        return edit

    for use in (lambda: model(IDS), lambda: next(model.generate(IDS)), lambda: model.trace(IDS)):
        with pytest.raises(NumpyBloomError, match="uses the model that makes it; load another"):
            model.trace(IDS, edits={"blocks.0.attn.z": asks(use)})
    assert len(model(IDS)) == len(IDS)


def test_an_edit_of_no_stage_is_refused(model: Bloom) -> None:
    for edits in ({"blocks.0.hook_z": unchanged}, {"blocks.*.attn.z": unchanged}):
        with pytest.raises(NumpyBloomError, match=r"no stage is called|is a pattern"):
            model.trace(IDS, edits=edits)
        with pytest.raises(NumpyBloomError, match=r"no stage is called|is a pattern"):
            model.variants(IDS, [edits])
    with pytest.raises(NumpyBloomError, match="no variants"):
        model.variants(IDS, [])


@pytest.mark.parametrize("head", [-1, HEADS])
def test_a_head_that_is_not_there_is_told(model: Bloom, head: int) -> None:
    with pytest.raises(NumpyBloomError, match=f"head is {head}; the model's are 0 to 5"):
        model.variants(IDS, [{"blocks.0.attn.z": ablate_head(head)}])


# --- variants -------------------------------------------------------------------------------------


def test_each_head_ablated_in_one_pass(model: Bloom) -> None:
    name = "blocks.1.attn.z"
    variants: list[dict[str, Any]] = [{name: ablate_head(head)} for head in range(HEADS)]
    logits = model.variants(IDS, [*variants, {}])
    assert logits.shape == (HEADS + 1, model.config.vocab_size)
    one_by_one = [model.trace(IDS, edits=edits)[0][-1] for edits in [*variants, {}]]
    assert np.abs(logits - one_by_one).max() < TOLERANCE
    changes = np.abs(logits[:-1] - logits[-1]).max(axis=-1)
    assert changes.min() > 100 * TOLERANCE  # every head matters


@pytest.mark.parametrize("name", NAMES)
def test_any_stage_can_differ_between_variants(model: Bloom, name: str) -> None:
    """Those that come in slices, too, and those of the last tokens only."""
    logits = model.variants(IDS, [{}, {name: halved}, {}, {"blocks.1.mlp_out": halved}])
    plain = model(IDS)[-1]
    one = model.trace(IDS, edits={name: halved})[0][-1]
    other = model.trace(IDS, edits={"blocks.1.mlp_out": halved})[0][-1]
    assert np.abs(logits - [plain, one, plain, other]).max() < TOLERANCE


def test_one_pass_reads_each_weight_once_for_all_variants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_many_pieces(monkeypatch)
    folder = model_folder(tmp_path)
    variants: list[dict[str, Any]] = [{"blocks.1.attn.z": ablate_head(head)} for head in range(4)]
    with numpy_bloom.load(folder, threads=1) as model:
        expected = model.variants(IDS, variants)
        stream = model.model.stream
        memory = model.model.memory_for_all - stream.nbytes + stream.buffer_bytes
    with numpy_bloom.load(folder, memory=memory, threads=1) as model:
        stream = model.model.stream
        model.variants(IDS, variants)
        before = stream.bytes_read
        assert np.array_equal(model.variants(IDS, variants), expected)
        rows = len(set(IDS)) * model.model.parameters.word_embeddings.format.nbytes(1, 32)
        read = stream.bytes_read - before
    assert 0.9 * stream.nbytes < read <= stream.nbytes + rows + stream.buffer_bytes
