"""Draft models: which are refused, and that they take their share of the memory."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.batches import alone, endless, said, watch_passes
from support.checkpoints import VOCAB_SIZE, Checkpoint, byte_tokenizer
from support.conversions import converted
from support.dials import EVERYTHING, NEW, PROMPT, in_many_pieces, model_folder, share_pinned

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.errors import NumpyBloomError, OptionError
from numpy_bloom.model.cache import KVCache
from numpy_bloom.running.model import Model


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
            pytest.raises(
                NumpyBloomError, match=r"draft model needs more than the .* of memory"
            ) as error,
        ):
            model.generate(PROMPT, max_new_tokens=NEW, draft_model=draft)
        assert "\n" not in str(error.value)
        assert draft.model.stream.bytes_pinned == 0
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
            assert most[draft.model] <= draft.model.memory_for_all
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


def test_a_draft_takes_memory_as_long_as_its_run(folder: Path, model: Bloom) -> None:
    """Once, however many texts it guesses for, and whatever else begins meanwhile."""

    def needed() -> int:
        run = model.generate(PROMPT, max_new_tokens=NEW)
        list(run)
        return model.model.memory_for_all

    before = needed()
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=1) as draft:
        first = model.generate(PROMPT, max_new_tokens=NEW, draft_model=draft)
        one, share = needed(), draft.model.resident_bytes
        second = model.generate(PROMPT, max_new_tokens=NEW, draft_model=draft)
        cache = KVCache.nbytes(model.config, len(PROMPT) + NEW - 1)
        assert one - before >= share + cache
        assert needed() - one == 2 * cache  # of the model and of the draft
        list(first)
        list(second)
        assert needed() == before


def test_a_model_that_guesses_for_itself(folder: Path, model: Bloom) -> None:
    """It is there once."""
    expected = alone(model, [PROMPT], max_new_tokens=NEW)
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=1) as draft:
        assert alone(model, [PROMPT], max_new_tokens=NEW, draft_model=draft) == expected
        twice = model.model.memory_for_all
    assert alone(model, [PROMPT], max_new_tokens=NEW, draft_model=model) == expected
    assert twice - model.model.memory_for_all >= model.model.stream.nbytes


def test_drafts_join_and_leave_with_their_texts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draft model with room for one text guesses for many, one after the other, though all
    generations are held to the end."""
    prompts = [[number] * 12 for number in range(5, 11)]
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=1) as model:
        expected = alone(model, prompts, max_new_tokens=NEW)
        with numpy_bloom.load(folder, memory=EVERYTHING, threads=1) as draft:
            alone(model, prompts[:1], max_new_tokens=NEW, draft_model=draft)
            whole = draft.model.memory_for_all
        for memory, most in ((whole, 1), (EVERYTHING, len(prompts))):
            with numpy_bloom.load(folder, memory=memory, threads=1) as draft:
                with monkeypatch.context() as patch:
                    passes = watch_passes(patch)
                    generations = model.generate_batch(
                        prompts, max_new_tokens=NEW, draft_model=draft
                    )
                    for generation in generations:
                        list(generation)
                assert [said(generation) for generation in generations] == expected
                assert all(one.nbytes <= memory for one in passes if one.model is draft.model)
                together = [len(one.fed) for one in passes if one.model is model.model]
                assert max(together) == most


def test_distributions_of_guesses_are_within_the_dial(folder: Path, model: Bloom) -> None:
    """Those of all texts are alive while a pass verifies them; what is looked up has none."""

    def working(**options: Any) -> int:
        """Bytes of a pass of two texts."""
        run = model.generate_batch([PROMPT] * 2, max_new_tokens=NEW, **options)
        return max(nbytes for nbytes, _ in model.model._runs.values()) + 0 * len(run)

    row = 4 * model.config.vocab_size
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=1) as draft:
        for count in (1, 3):
            looked_up = working(draft_model="prompt-lookup", draft_tokens=count)
            assert looked_up - working() >= 2 * count * row
            drawn = working(draft_model=draft, draft_tokens=count)
            assert drawn - looked_up == 2 * count * row
