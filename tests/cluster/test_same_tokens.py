"""A model over a cluster says what it says in one process; the same passes give the same bits."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from clusters import NEW, PROMPTS, caches_held, generated, holders, opened, texts
from support.batches import endless
from support.conversions import converted

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.perplexity import Windows, score_windows, windows_per_pass
from numpy_bloom.running.memory import Needs


class Both(NamedTuple):
    one: Bloom
    spread: Bloom


@pytest.fixture(scope="module", params=[1, 2, 3, 5])
def both(request: pytest.FixtureRequest, folder: Path) -> Iterator[Both]:
    with numpy_bloom.load(folder) as one, opened(folder, f"local:{request.param}") as spread:
        yield Both(one, spread)
        assert len(set(holders(spread))) == request.param  # each had a range


def test_logits(both: Both) -> None:
    for prompt in PROMPTS:
        assert np.array_equal(both.spread(prompt), both.one(prompt))


def test_scores(both: Both) -> None:
    for prompt in PROMPTS:
        assert np.array_equal(both.spread.score(prompt), both.one.score(prompt))


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "top_p": 0.9, "seed": 3}])
def test_one_text(both: Both, options: dict) -> None:
    prompt = PROMPTS[0]
    assert generated(both.spread, prompt, **options) == generated(both.one, prompt, **options)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 3}])
def test_several_texts(both: Both, options: dict) -> None:
    """They go in groups of other sizes, so the last digits may differ, but no token does."""
    assert texts(both.spread, **options) == texts(both.one, **options)
    parts = len(holders(both.spread))
    assert [len(both.spread.model._groups(count)) for count in (1, 3, 9)] == [
        1,
        min(3, parts),
        parts,
    ]


def test_samples(both: Both) -> None:
    options = {"num_samples": 3, "temperature": 0.9, "seed": 5}
    assert texts(both.spread, **options) == texts(both.one, **options)


def test_guesses_of_the_text_itself(both: Both) -> None:
    again = PROMPTS[0] * 3
    expected = generated(both.one, again, draft_model="prompt-lookup")
    assert generated(both.spread, again, draft_model="prompt-lookup") == expected


def test_guesses_of_another_model(both: Both, tmp_path: Path) -> None:
    with numpy_bloom.load(converted(endless(seed=1, blocks=1), tmp_path)) as draft:
        options = {"draft_model": draft, "draft_tokens": 3}
        assert generated(both.spread, PROMPTS[0], **options) == generated(
            both.one, PROMPTS[0], **options
        )


def test_beams(both: Both) -> None:
    found = [
        [token.id for token in model.beam_search(PROMPTS[0], num_beams=4, max_new_tokens=NEW)]
        for model in both
    ]
    assert found[0] == found[1]


def test_stop(both: Both) -> None:
    whole = both.one.generate(PROMPTS[0], max_new_tokens=NEW)
    list(whole)
    stop = whole.text[4:6]
    for model in both:
        generation = model.generate(PROMPTS[0], max_new_tokens=NEW, stop=[stop])
        list(generation)
        assert generation.text == whole.text[: whole.text.index(stop)]
        assert generation.finish_reason == "stop"


def test_a_text_in_a_file(both: Both, tmp_path: Path) -> None:
    """It is kept by one and gone on with by the other, in both directions."""
    expected = [token for token, _ in generated(both.one, PROMPTS[0])]
    for number, (first, second) in enumerate([both, both[::-1]]):
        file = tmp_path / f"{number}"
        generation = first.generate(PROMPTS[0], max_new_tokens=NEW, prompt_cache=file)
        begun = [next(generation).id for _ in range(4)]
        del generation
        assert begun == expected[:4]
        assert [token.id for token in second.resume(file)] == expected


def test_windows(both: Both) -> None:
    ids = np.concatenate(PROMPTS)
    windows = Windows(len(ids), 8)
    scores = []
    for model in both:
        together = windows_per_pass(model.model, windows)
        assert together == len(windows)
        scores.append(np.concatenate(list(score_windows(model.model, ids, windows, together))))
    assert np.allclose(*scores, rtol=0, atol=1e-4)


def test_what_is_over_gives_its_memory_back(both: Both) -> None:
    model = both.spread.model
    generation = both.spread.generate(PROMPTS[0], max_new_tokens=NEW)
    assert len(model._runs.going_on) == 1
    del generation
    both.spread(PROMPTS[0])
    model.has_room(Needs([1], pass_tokens=1, logit_rows=1))
    assert model._runs.going_on == []
    assert set(caches_held(both.spread)) == {0}


def test_stages_cannot_be_seen(both: Both) -> None:
    with pytest.raises(NumpyBloomError, match="need all blocks in one process"):
        both.spread.trace(PROMPTS[0])
