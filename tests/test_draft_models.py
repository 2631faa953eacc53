"""Draft models: which are refused, and that they take their share of the memory."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batches import alone, endless, said, watch_passes
from checkpoints import VOCAB_SIZE, Checkpoint, byte_tokenizer
from conversions import converted
from dials import EVERYTHING, NEW, PROMPT, in_many_pieces, model_folder, share_pinned

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.errors import NumpyBloomError, OptionError
from numpy_bloom.model.model import Model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_many_pieces(monkeypatch)
    return model_folder(tmp_path)


@pytest.fixture
def model(folder: Path) -> Iterator[Bloom]:
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=1) as model:
        yield model


@pytest.mark.parametrize(
    "other",
    [
        endless(vocab=VOCAB_SIZE + 1),
        endless(vocab=VOCAB_SIZE - 1),
        endless(tokenizer=byte_tokenizer([(b"a", b"b")])),
        endless(tokenizer=None),
    ],
    ids=["larger", "smaller", "other tokens", "no tokenizer"],
)
def test_another_vocabulary(tmp_path: Path, model: Bloom, other: Checkpoint) -> None:
    with numpy_bloom.load(converted(other, tmp_path / "other"), threads=1) as draft:
        for one, two in itertools.permutations([model, draft]):
            with pytest.raises(NumpyBloomError, match="draft model has another vocabulary"):
                one.generate(PROMPT, draft_model=two)


@pytest.mark.parametrize("wrong", ["", "lookup", 3, Path("prompt-lookup")])
def test_no_draft_model(model: Bloom, wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"draft_model is .*; expected 'prompt-lookup' or a"):
        model.generate(PROMPT, draft_model=wrong)


@pytest.mark.parametrize("count", [0, -1, 2.5])
def test_draft_tokens_out_of_range(model: Bloom, count: Any) -> None:
    with pytest.raises(OptionError, match=rf"draft_tokens is {count}; expected a value in \[1, "):
        model.generate(PROMPT, draft_model="prompt-lookup", draft_tokens=count)


def test_a_draft_that_does_not_fit(folder: Path, model: Bloom) -> None:
    """It is not read from disk in every pass."""
    expected, stream = alone(model, [PROMPT], max_new_tokens=NEW), model.model.stream
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=1) as draft:
        alone(model, [PROMPT], max_new_tokens=NEW, draft_model=draft)
        whole = draft.model.memory_for_all
    for memory in (1, whole - stream.nbytes + stream.buffer_bytes, whole - 1):
        with (
            numpy_bloom.load(folder, memory=memory, threads=1) as draft,
            pytest.raises(NumpyBloomError, match=r"needs .* MB of memory.*may be used") as error,
        ):
            model.generate(PROMPT, max_new_tokens=NEW, draft_model=draft)
        assert "\n" not in str(error.value)
        assert memory == 1 or "the draft model needs" in str(error.value)
    with numpy_bloom.load(folder, memory=whole, threads=1) as draft:
        assert alone(model, [PROMPT], max_new_tokens=NEW, draft_model=draft) == expected


def test_a_draft_counts_within_the_dial(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights give way to it, and in every pass all is within the memory that there is."""
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=1) as draft:
        with numpy_bloom.load(folder, memory=EVERYTHING, threads=1) as model:
            expected, stream = alone(model, [PROMPT], max_new_tokens=NEW), model.model.stream
            model.generate(PROMPT, max_new_tokens=NEW, draft_model=draft)
            both = model.model.memory_for_all
        memory = both - (stream.nbytes - stream.buffer_bytes) // 2
        with numpy_bloom.load(folder, memory=memory, threads=1) as model:
            assert share_pinned(model) == 1
            passes, stream = watch_passes(monkeypatch), model.model.stream
            generation = model.generate(PROMPT, max_new_tokens=NEW, draft_model=draft)
            list(generation)
            assert [said(generation)] == expected
            assert 0 < stream.bytes_pinned < stream.nbytes
            most: dict[Model, int] = {}
            for one in passes:
                most[one.model] = max(one.nbytes, most.get(one.model, 0))
            assert most[draft.model] <= model.model.memory_elsewhere == draft.model.memory_for_all
            assert most[model.model] + most[draft.model] <= memory
        del generation  # and the draft's keys and values with it
        memory = both - stream.nbytes + stream.buffer_bytes
        with (
            numpy_bloom.load(folder, memory=memory - 1, threads=1) as model,
            pytest.raises(NumpyBloomError, match="this run needs at least"),
        ):
            model.generate(PROMPT, max_new_tokens=NEW, draft_model=draft)
        with numpy_bloom.load(folder, memory=memory, threads=1) as model:
            assert alone(model, [PROMPT], max_new_tokens=NEW, draft_model=draft) == expected


def test_a_draft_that_is_closed_takes_no_memory(folder: Path, model: Bloom) -> None:
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=1) as draft:
        alone(model, [PROMPT], max_new_tokens=NEW)
        before = model.model.memory_for_all
        alone(model, [PROMPT], max_new_tokens=NEW, draft_model=draft)
    alone(model, [PROMPT], max_new_tokens=NEW)
    assert model.model.memory_for_all == before
