"""Beam search as a user meets it: what it tells and refuses, Ctrl-C, its memory."""

import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.beam_searches import NEW, PROMPT, RANDOM, found, log_probabilities, needed
from support.checkpoints import Checkpoint
from support.conversions import converted
from support.interruptions import Interrupt

import numpy_bloom
from numpy_bloom.errors import NumpyBloomError, OptionError
from numpy_bloom.generation import beams
from numpy_bloom.generation.beams import START, BeamOptions, advance
from numpy_bloom.model.cache import KVCache
from numpy_bloom.running.memory import LIVE_LOGITS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[numpy_bloom.Bloom]:
    """A model that never ends a text by itself."""
    checkpoint = Checkpoint(**RANDOM, config={"eos_token_id": None})
    folder = converted(checkpoint, tmp_path_factory.mktemp("endless"))
    with numpy_bloom.load(folder, threads=1) as model:
        yield model


def test_one_beam_is_greedy(model: numpy_bloom.Bloom, tmp_path: Path) -> None:
    def check(model: numpy_bloom.Bloom, reason: str) -> Any:
        greedy = model.generate(PROMPT, max_new_tokens=NEW)
        tokens = list(greedy)
        for options in ({}, {"length_penalty": -1.0}, {"early_stopping": True}):
            search = model.beam_search(PROMPT, num_beams=1, max_new_tokens=NEW, **options)
            assert [(token.id, token.text) for token in search] == [
                (token.id, token.text) for token in tokens
            ]
            assert (search.text, search.finish_reason) == (greedy.text, reason)
            assert search.stats.passes == greedy.stats.passes
        return greedy

    ids = check(model, "length").token_ids
    end = next(i for i in ids[2:] if i not in ids[:2])
    checkpoint = Checkpoint(**RANDOM, config={"eos_token_id": end})
    with numpy_bloom.load(converted(checkpoint, tmp_path)) as ending:
        assert check(ending, "eos").token_ids[-1] == end


def test_what_a_search_tells(model: numpy_bloom.Bloom) -> None:
    search = model.beam_search(PROMPT, num_beams=3, max_new_tokens=NEW, repetition_penalty=1.3)
    assert (search.finish_reason, search.token_ids, search.text) == (None, [], "")
    assert (search.score, search.stats.passes) == (None, 0)
    tokens = list(search)
    assert next(search, None) is None
    assert search.prompt_token_ids == PROMPT
    assert len(search.token_ids) == len(tokens) == NEW
    assert search.text == "".join(token.text for token in tokens) == model.decode(search.token_ids)
    assert search.stats.passes == NEW
    assert search.stats.tokens_per_pass == 1
    assert search.stats.prefill_seconds > 0
    assert search.stats.decode_seconds > 0
    for place, token in enumerate(tokens):  # of the model itself, without the penalty
        scores = log_probabilities(model, PROMPT + search.token_ids[:place])
        assert token.logprob == pytest.approx(float(scores[token.id]), abs=1e-4)


def test_the_score_is_that_of_the_tokens(model: numpy_bloom.Bloom) -> None:
    search = model.beam_search(PROMPT, num_beams=3, max_new_tokens=NEW, length_penalty=0.5)
    total = sum(token.logprob for token in search)
    assert search.score == pytest.approx(total / NEW**0.5, rel=1e-5)


def test_stop(model: numpy_bloom.Bloom) -> None:
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": NEW, "repetition_penalty": 1.5}
    whole = model.beam_search(PROMPT, **options)
    texts = [token.text for token in whole]
    stop = next(text for text in texts[2:] if text.strip("\ufffd"))
    search = found(model, PROMPT, stop=["never there", stop], **options)
    assert search.finish_reason == "stop"
    assert search.text == whole.text[: whole.text.index(stop)]
    assert search.token_ids == whole.token_ids[: len(search.token_ids)]
    assert len(search.token_ids) < NEW
    assert search.score == whole.score


def test_text_as_prompt(model: numpy_bloom.Bloom) -> None:
    searches = [
        found(model, prompt, num_beams=2, max_new_tokens=3)
        for prompt in ("Todos los", model.encode("Todos los"), np.array(model.encode("Todos los")))
    ]
    assert len({tuple(search.token_ids) for search in searches}) == 1
    for wrong in ("", [], [5, -1]):
        with pytest.raises(NumpyBloomError, match=r"empty|token id -1"):
            model.beam_search(wrong, num_beams=2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_beams": 0}, "num_beams is 0; expected a value in [1, inf), whole"),
        ({"num_beams": 2.5}, "num_beams is 2.5; expected a value in [1, inf), whole"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected a value in [1, inf), whole"),
        (
            {"length_penalty": float("nan")},
            "length_penalty is nan; expected a value in (-inf, inf)",
        ),
        (
            {"length_penalty": float("inf")},
            "length_penalty is inf; expected a value in (-inf, inf)",
        ),
        ({"length_penalty": "a"}, "length_penalty is 'a'; expected a value in (-inf, inf)"),
        ({"early_stopping": "never"}, "early_stopping is 'never'; expected True or False"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; expected a value in (0, inf)"),
        ({"stop": [""]}, "stop text is empty"),
    ],
)
def test_options_out_of_range(model: numpy_bloom.Bloom, options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError) as error:
        model.beam_search(PROMPT, **{"num_beams": 2, **options})
    assert told in str(error.value)


def test_going_on_after_ctrl_c(model: numpy_bloom.Bloom, step: int) -> None:
    """At many lines of the search, or of the cache: the result is the same."""
    package = Path(beams.__file__).parents[1]
    files = [
        package / part
        for part in ("generation/beams.py", "generation/beam_caches.py", "model/cache.py")
    ]
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 5, "repetition_penalty": 1.5}
    expected = found(model, PROMPT, **options)
    assert len(set(expected.token_ids)) == 5
    with Interrupt(0, files) as undisturbed:
        found(model, PROMPT, **options)
    for place in range(1, undisturbed.lines, 5 * step):
        search = model.beam_search(PROMPT, **options)
        with suppress(KeyboardInterrupt), Interrupt(place, files):
            list(search)
        list(search)
        assert (search.token_ids, search.score) == (expected.token_ids, expected.score)
        assert search.text == expected.text


def test_a_penalty_beyond_float32(model: numpy_bloom.Bloom) -> None:
    """Infinite scores are told of by nobody: warnings are errors here."""
    for penalty in (1e-300, 1e300):
        assert found(model, PROMPT, num_beams=2, max_new_tokens=2, repetition_penalty=penalty)


def test_output_that_is_not_finite(tmp_path: Path) -> None:
    checkpoint = Checkpoint(**RANDOM)
    checkpoint.tensors["lm_head.weight"][7] = 3e38
    checkpoint.tensors["ln_f.bias"][:] = 3e3
    with (
        numpy_bloom.load(converted(checkpoint, tmp_path)) as model,
        pytest.raises(NumpyBloomError, match="not finite"),
    ):
        list(model.beam_search(PROMPT, num_beams=2))


@pytest.mark.parametrize("tokens", [3, 15])
def test_memory_that_is_told(model: numpy_bloom.Bloom, tokens: int) -> None:
    """A pass of the prompt, or of a token for each beam, the caches of all beams, and what they are
    continued by."""
    model.beam_search(PROMPT[:tokens], num_beams=5, max_new_tokens=40)
    work = model.model.working_bytes(max(5, tokens), tokens + 39, logit_rows=5)
    caches = KVCache.nbytes(model.config, 5 * (tokens + 39))
    candidates = 60 * 5 * (5 + len(model.config.eos_token_ids))
    assert needed(model) == model.model.store.vector_bytes + caches + work + candidates


def test_memory(tmp_path: Path) -> None:
    """What is told is enough, and given back when the search is over."""
    folder = converted(Checkpoint(**RANDOM), tmp_path)
    options: dict[str, Any] = {"max_new_tokens": 40}
    with numpy_bloom.load(folder, memory="1GB", threads=1) as model:
        expected = found(model, PROMPT, num_beams=5, **options)
        least = needed(model) + min(model.model.stream.nbytes, model.model.stream.buffer_bytes)
    with numpy_bloom.load(folder, memory=least, threads=1) as model:
        searches = [found(model, PROMPT, num_beams=5, **options) for _ in range(2)]
        assert [search.token_ids for search in searches] == [expected.token_ids] * 2
    with numpy_bloom.load(folder, memory=least - 1, threads=1) as model:
        with pytest.raises(NumpyBloomError, match="this run needs at least"):
            model.beam_search(PROMPT, num_beams=5, **options)
        found(model, PROMPT, num_beams=4, **options)


@pytest.mark.parametrize(("count", "vocab"), [(5, 250_880), (300, 1000)])
def test_choosing_takes_no_more_than_is_estimated(count: int, vocab: int) -> None:
    options = BeamOptions(count, 9, [2], repetition_penalty=1.2)
    logits = np.random.default_rng(0).standard_normal((count, vocab), dtype=np.float32)
    state = advance(START, logits[:1], [1], options)
    tracemalloc.start()
    advance(state, logits, [1], options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    candidates = count * beams.most_of_each(options)
    assert peak <= 4 * vocab * LIVE_LOGITS + beams.CANDIDATE_BYTES * candidates
