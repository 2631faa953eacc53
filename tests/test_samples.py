"""Several samples of one prompt: its keys and values are computed once, and each is its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.batches import ending, said, watch_passes
from support.dials import EVERYTHING, PROMPT, model_folder

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.errors import OptionError
from numpy_bloom.generation.batch import Batch
from numpy_bloom.generation.continuation import Continuation
from numpy_bloom.generation.options import GenerationOptions
from numpy_bloom.generation.text import TextStream

NEW = 8
SAMPLES = 6
HOT: dict[str, Any] = {"temperature": 1.5, "seed": 3, "max_new_tokens": NEW}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("samples"))


@pytest.fixture
def model(folder: Path) -> Iterator[Bloom]:
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=2) as model:
        yield model


def samples(model: Bloom, prompts: list[Any], count: int = SAMPLES, **options: Any) -> list[Any]:
    generations = model.generate_batch(prompts, num_samples=count, **options)
    for generation in generations:
        list(generation)
    return [said(generation) for generation in generations]


def sample_alone(model: Bloom, prompt: list[int], number: int) -> list[int]:
    """One sample that shares nothing with others, but has its place among their draws."""
    entropy = int(np.random.SeedSequence(HOT["seed"]).generate_state(1, np.uint64)[0])
    continuation = Continuation(
        prompt,
        GenerationOptions(HOT["temperature"], max_new_tokens=NEW),
        eos_token_ids=(),
        text=TextStream(None),
        seed=[entropy, number],
    )
    batch = Batch(model.model, [continuation])
    while continuation.finish_reason is None:
        batch.next_token(continuation)
    return continuation.token_ids


def test_each_is_what_it_would_be_alone(model: Bloom) -> None:
    prompts = [PROMPT, PROMPT[:3]]
    found = samples(model, prompts, **HOT)
    for number, one in enumerate(found):
        assert one.token_ids == sample_alone(model, prompts[number // SAMPLES], number)
    assert found[0].token_ids == [token.id for token in model.generate(PROMPT, **HOT)]


def test_they_differ_and_can_be_repeated(model: Bloom) -> None:
    found = samples(model, [PROMPT, PROMPT], **HOT)
    assert len({tuple(one.token_ids) for one in found}) == len(found)
    assert samples(model, [PROMPT, PROMPT], **HOT) == found
    assert samples(model, [PROMPT], **HOT) == found[:SAMPLES]
    assert not {one.text for one in samples(model, [PROMPT], **HOT | {"seed": 4})} & {
        one.text for one in found
    }
    unseeded = HOT | {"seed": None}
    assert samples(model, [PROMPT], **unseeded) != samples(model, [PROMPT], **unseeded)


@pytest.mark.parametrize("tokens", [1, 2, len(PROMPT)])
def test_a_prompt_is_computed_once(
    model: Bloom, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """The others begin with its last token, whose logits they want as well."""
    passes = watch_passes(monkeypatch)
    samples(model, [PROMPT[:tokens]], **HOT)
    fed = [len(ids) for one in passes for ids in one.fed]
    assert sum(fed) == tokens + (SAMPLES - 1) + SAMPLES * (NEW - 1)
    if tokens == 1:  # there is nothing to wait for
        assert [len(one.fed) for one in passes] == [SAMPLES] * NEW
    else:
        assert [len(one.fed) for one in passes] == [1, *[SAMPLES] * (NEW - 1), SAMPLES - 1]
    for one in passes:
        assert len(set(one.caches)) == len(one.fed)


def test_a_prompt_whose_first_sample_ends_at_once(
    model: Bloom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is computed once more, for all the others."""
    first = samples(model, [PROMPT], **HOT)[0].token_ids[0]
    with ending(model, [first]):
        expected = samples(model, [PROMPT], **HOT)
        passes = watch_passes(monkeypatch)
        assert samples(model, [PROMPT], **HOT) == expected
    assert [len(ids) for one in passes for ids in one.fed].count(len(PROMPT)) == 2


@pytest.mark.parametrize("extra", [0, 20_000, 60_000])
def test_samples_within_a_tight_dial(folder: Path, extra: int) -> None:
    """With room for one, they come one after the other; they say the same."""
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=1) as model:
        expected = samples(model, [PROMPT, PROMPT[:3]], **HOT)
        run = model.generate(PROMPT, **HOT)
        stream = model.model.stream
        least = model.model.memory_for_all - stream.nbytes + stream.buffer_bytes
        del run
    least = min(least, least - stream.buffer_bytes + stream.nbytes)
    with numpy_bloom.load(folder, memory=least + extra, threads=1) as model:
        assert samples(model, [PROMPT, PROMPT[:3]], **HOT) == expected


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_k": 5, "temperature": 0.0}])
def test_greedy_samples_are_refused(model: Bloom, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="num_samples is 2, but greedy samples are all the same"):
        model.generate_batch([PROMPT], num_samples=2, **options)
    assert len(model.generate_batch([PROMPT], num_samples=1, **options)) == 1
    assert len(model.generate_batch([PROMPT], num_samples=2, top_k=5)) == 2


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_num_samples_out_of_range(model: Bloom, count: Any) -> None:
    with pytest.raises(OptionError, match=rf"num_samples is {count}; expected a value in \[1, inf"):
        model.generate_batch([PROMPT], num_samples=count, top_k=5)


def test_generate_gives_one_text_and_computes_no_others(model: Bloom) -> None:
    with pytest.raises(OptionError, match="call generate_batch"):
        model.generate(PROMPT, num_samples=3, temperature=1.0)
