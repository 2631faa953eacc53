"""Beam search: against all texts there are, against one without caches, and by hand."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.beam_searches import NEW, RANDOM, found, log_probabilities
from support.checkpoints import Checkpoint
from support.conversions import converted

import numpy_bloom
from numpy_bloom.generation.beams import START, BeamOptions, advance, is_over
from numpy_bloom.model.cache import KVCache

PENALTIES = (1.0, 0.0, 0.6, 2.0, -1.0)


def small_model(folder: Path, seed: int, vocab: int, eos: Any, gain: float) -> numpy_bloom.Bloom:
    checkpoint = Checkpoint(**RANDOM, vocab=vocab, seed=seed, tokenizer=None)
    checkpoint.tensors["lm_head.weight"] *= np.float32(gain)
    checkpoint.config["eos_token_id"] = eos
    return numpy_bloom.load(converted(checkpoint, folder), threads=1)


# Against all texts there are.


def all_texts(
    model: numpy_bloom.Bloom, prompt: list[int], new: int
) -> dict[tuple[int, ...], float]:
    """The log-probability of every text that ends with an end of text, or has so many tokens."""
    complete: dict[tuple[int, ...], float] = {}
    begun: dict[tuple[int, ...], float] = {(): 0.0}
    for length in range(1, new + 1):
        grown = {}
        for text, score in begun.items():
            for token_id, logprob in enumerate(log_probabilities(model, [*prompt, *text])):
                ends = token_id in model.config.eos_token_ids or length == new
                (complete if ends else grown)[(*text, token_id)] = score + float(logprob)
        begun = grown
    return complete


@pytest.mark.parametrize("seed", range(4))
def test_the_best_of_all_texts(tmp_path: Path, seed: int) -> None:
    """With a beam for every text there is, none is missed."""
    vocab, new, eos = 5, 4, [2, 4] if seed % 2 else 2
    going_on = vocab - len(np.atleast_1d(eos))
    with small_model(tmp_path, seed, vocab, eos, 0.4) as model:
        texts = all_texts(model, [3, 0], new)
        assert sum(np.exp(score) for score in texts.values()) == pytest.approx(1, abs=1e-5)
        lengths = set()
        for penalty, early_stopping in itertools.product(PENALTIES, (False, True)):
            scores = {text: score / len(text) ** penalty for text, score in texts.items()}
            second, best = sorted(scores, key=lambda text: scores[text])[-2:]
            assert scores[best] - scores[second] > 1e-4
            search = found(
                model,
                [3, 0],
                num_beams=going_on ** (new - 1) * vocab,
                max_new_tokens=new,
                length_penalty=penalty,
                early_stopping=early_stopping,
            )
            assert search.token_ids == list(best)
            assert search.score == pytest.approx(scores[best], abs=1e-5)
            lengths.add(len(best))
        assert len(lengths) > 1  # the penalty has a say


# Against a search without caches, of a straightforward kind.


def plain_search(
    model: numpy_bloom.Bloom,
    prompt: list[int],
    num_beams: int,
    length_penalty: float,
    early_stopping: bool,
    repetition_penalty: float,
) -> tuple[list[int], float, int]:
    """The best text, its score, and the number of steps."""
    running = [(0.0, list[int]())]
    ended: list[tuple[float, list[int]]] = []
    for step in range(1, NEW + 1):
        grown = []
        for total, ids in running:
            scores = log_probabilities(model, prompt + ids)
            scores[list({*prompt, *ids})] *= repetition_penalty  # they are all negative
            grown += [(total + score, [*ids, token]) for token, score in enumerate(scores)]
        grown.sort(reverse=True)
        at_end = [text for _, text in grown if text[-1] in model.config.eos_token_ids]
        if step == NEW:
            at_end = [text for _, text in grown]
        for total, ids in grown[:num_beams]:
            if ids in at_end:
                ended.append((total / step**length_penalty, ids))
        ended = sorted(ended, reverse=True)[:num_beams]
        running = [text for text in grown if text[1] not in at_end][:num_beams]
        if len(ended) == num_beams and (
            early_stopping or not running or running[0][0] / step**length_penalty <= ended[-1][0]
        ):
            break
    return ended[0][1], ended[0][0], step


@pytest.mark.parametrize("seed", range(6))
def test_the_same_without_caches(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = []
    real = KVCache.copy_prefix

    def counted(cache: KVCache, other: KVCache, tokens: int, known: int = 0) -> None:
        copies.append((tokens, known))
        real(cache, other, tokens, known)

    monkeypatch.setattr(KVCache, "copy_prefix", counted)
    prompt, results, steps = [3, 9, 3, 14], set(), set()
    with small_model(tmp_path, seed, 20, None, 1.0) as model:
        likely = plain_search(model, prompt, 3, 1.0, False, 1.3)[0]
        ends = (likely[4], likely[7], 11)[: 1 + seed % 3]
        model.config = replace(model.config, eos_token_ids=ends)
        for number, (num_beams, early_stopping) in enumerate(
            itertools.product((2, 3, 4, 5), (False, True))
        ):
            penalty = PENALTIES[(number + seed) % 5]
            repetition = 1.3 if number % 3 == 0 else 1.0
            options = (num_beams, penalty, early_stopping, repetition)
            ids, score, passes = plain_search(model, prompt, *options)
            search = found(
                model,
                prompt,
                max_new_tokens=NEW,
                num_beams=num_beams,
                length_penalty=penalty,
                early_stopping=early_stopping,
                repetition_penalty=repetition,
            )
            assert search.token_ids == ids
            assert search.score == pytest.approx(score, abs=1e-4)
            assert search.stats.passes == passes
            assert search.finish_reason == ("eos" if ids[-1] in ends else "length")
            results.add(tuple(ids))
            steps.add(passes)
    assert len(results) > 1
    assert len(steps) > 1
    # The prompt is copied once to each other beam, later only what they have not in common.
    assert {known for tokens, known in copies if tokens == len(prompt)} == {0}
    later = [(tokens, known) for tokens, known in copies if tokens > len(prompt)]
    assert later
    assert all(len(prompt) <= known < tokens for tokens, known in later)


# By hand: three tokens, of which 0 ends a text.


def walk(table: list[list[list[float]]], **given: Any) -> list[Any]:
    """The beams after each step. The table has a row of probabilities for each that runs."""
    options = BeamOptions(**{"num_beams": 2, "max_new_tokens": 9, "eos_token_ids": [0], **given})
    state, states = START, []
    for rows in table:
        assert not is_over(state, options)
        state = advance(state, np.log(np.array(rows, np.float32)), [1], options)
        states.append(state)
    assert is_over(state, options)
    return states


def told(found: Sequence[Any]) -> list[tuple[list[int], float]]:
    return [(beam.token_ids, pytest.approx(float(np.exp(beam.score)), rel=1e-5)) for beam in found]


def test_an_end_counts_among_the_best_only() -> None:
    first, second, third = walk(
        [
            [[0.2, 0.5, 0.3]],
            [[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]],
            [[0.8, 0.15, 0.05], [0.1, 0.8, 0.1]],
        ],
        length_penalty=0.0,
    )
    assert told(first.running) == [([1], 0.5), ([2], 0.3)]
    assert told(first.ended) == []  # the end of text was but third
    assert told(second.running) == [([2, 2], 0.21), ([1, 1], 0.15)]
    assert told(second.ended) == [([1, 0], 0.3)]
    assert told(third.running) == [([1, 1, 1], 0.12), ([2, 2, 1], 0.0315)]
    assert told(third.ended) == [([1, 0], 0.3), ([2, 2, 0], 0.168)]


TWO_ENDED = [[[0.5, 0.4, 0.1]], [[0.3, 0.65, 0.05], [0.9, 0.05, 0.05]]]
"""By now .5 [0] and .12 [1 0] have ended, but .26 [1 1] is better than the latter."""


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_early_stopping(penalty: float) -> None:
    last = walk(TWO_ENDED, early_stopping=True, length_penalty=penalty)[-1]
    assert told(last.ended) == [([0], 0.5), ([1, 0], 0.12 ** (0.5**penalty))]
    assert told(last.running) == [([1, 1], 0.26), ([1, 2], 0.02)]


@pytest.mark.parametrize(
    ("penalty", "row", "ended"),
    [
        (0.0, [0.4, 0.35, 0.25], [([0], 0.5), ([1, 0], 0.12)]),
        (0.0, [0.6, 0.25, 0.15], [([0], 0.5), ([1, 1, 0], 0.156)]),
        (1.0, [0.6, 0.25, 0.15], [([1, 1, 0], 0.156 ** (1 / 3)), ([0], 0.5)]),
    ],
)
def test_going_on_while_the_best_that_runs_would_count(
    penalty: float, row: list[float], ended: list[tuple[list[int], float]]
) -> None:
    """What runs is divided by its length, too: .26 ** (1/2) is more than .12 ** (1/2)."""
    last = walk([*TWO_ENDED, [row, [0.5, 0.4, 0.1]]], length_penalty=penalty)[-1]
    assert told(last.ended) == ended


def test_the_penalty_is_of_the_length_with_the_end() -> None:
    _, last = walk([[[0.1, 0.8, 0.1]], [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]]], max_new_tokens=2)
    assert told(last.ended) == [([1, 0], 0.56**0.5), ([1, 1], 0.16**0.5)]
    assert told(last.running) == []


def test_a_vocabulary_smaller_than_the_beams() -> None:
    """There are fewer beams at first, and none that are followed twice."""
    first, last = walk(
        [[[0.2, 0.5, 0.3]], [[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]], num_beams=9, max_new_tokens=2
    )
    assert told(first.running) == [([1], 0.5), ([2], 0.3)]
    assert len(last.ended) == 7
    assert walk([[[0.2, 0.5, 0.3]]], eos_token_ids=[0, 1, 2])[0].ended[0].token_ids == [1]


@pytest.mark.parametrize("penalty", [1e6, -1e6])
def test_penalties_beyond_all_numbers(penalty: float) -> None:
    table = [[[0.1, 0.8, 0.1]], [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]]]
    assert len(walk(table, max_new_tokens=2, length_penalty=penalty)[-1].ended) == 2
