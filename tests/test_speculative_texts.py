"""Sampling with guesses: the distribution of three tokens is jointly that without.

A text is continued in every way that its draws can take, each of which is known to nine digits,
over a Markov chain whose transitions are known. That the draws are independent is counted.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.acceptance import WRONG, Floats, Verify, Wide, outcome

from numpy_bloom.generation import continuation, drafts
from numpy_bloom.generation.continuation import Continuation
from numpy_bloom.generation.drafts import Drafter, DraftModel, PromptLookup
from numpy_bloom.generation.options import GenerationOptions
from numpy_bloom.generation.sampling import SamplingOptions, verify
from numpy_bloom.generation.text import TextStream

TOKENS = 4
PROMPT = [0, 1, 2, 0, 3, 1, 2, 2, 0, 1]
LOGITS = np.random.default_rng(1).normal(0, 1, (TOKENS, TOKENS)).astype(np.float32)
"""Of the token after each token."""
OTHER_LOGITS = np.random.default_rng(2).normal(0, 1, (TOKENS, TOKENS)).astype(np.float32)


def transitions(sampling: SamplingOptions) -> Wide:
    """(V, V) probability of each token after each."""
    scaled = LOGITS.astype(np.float64) / sampling.effective_temperature
    if sampling.top_k is not None:
        least = np.sort(scaled, axis=1)[:, [-sampling.top_k]]
        scaled[scaled < least] = -np.inf
    shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


class Chain:
    """Stands for a model: the next token depends on the last one alone."""

    def __init__(self, logits: Floats) -> None:
        self._logits = logits

    def has_room(self, _needs: Any, *, resident: bool) -> bool:
        return True

    def prepare(self, _needs: Any) -> Any:
        return [SimpleNamespace(length=0)]

    def run(self, sequences: Any, caches: Any) -> Floats:
        (ids,), (cache,) = sequences, caches
        cache.length += len(ids)
        return np.array(self._logits[ids[-1:]])


def continued(sampling: SamplingOptions, drafter: Drafter, number: int) -> tuple[list[int], int]:
    """Four new tokens after the prompt, with two guesses at a time, and the passes they took."""
    text = Continuation(
        PROMPT,
        GenerationOptions(**asdict(sampling), max_new_tokens=4, draft_tokens=2),
        eos_token_ids=(),
        text=TextStream(None),
        seed=[1 << 40, number],
        drafter=drafter,
    )
    text.cache = SimpleNamespace(length=0)  # type: ignore[assignment]
    for passes in itertools.count(1):
        ids = text.feed()
        text.take(LOGITS[ids[-text.rows :]])
        if text.finish_reason is not None:
            return text.token_ids, passes
    raise AssertionError


def joint(sampling: SamplingOptions) -> Wide:
    """(V, V, V) probability of three tokens after the first new one, which nobody guesses."""
    after = transitions(sampling)
    return np.asarray(np.einsum("a,ab,bc,cd->bcd", after[PROMPT[-1]], after, after, after))


class Ways:
    """All ways in which a text can go on: each draw is taken to each of its outcomes in turn.

    Attributes:
        share: how probable this way is.
    """

    def __init__(self) -> None:
        self._choices: list[list[int]] = []  # of the draws so far, the outcomes not taken yet
        self._made = 0
        self._numbers: set[float] = set()
        self.share = 1.0

    def draw(self, probabilities: Any, random: np.random.Generator) -> int:
        """Takes the place of a draw, and of a decision on a guess."""
        number = random.random()
        assert number not in self._numbers  # else the draw would depend on another one
        self._numbers.add(number)
        if self._made == len(self._choices):
            self._choices.append(np.flatnonzero(probabilities).tolist())
        token_id = self._choices[self._made][-1]
        self._made += 1
        self.share *= float(probabilities[token_id])
        return token_id

    def next(self) -> bool:
        """Go back to the beginning, to take another way. Whether there is one."""
        self._made, self._numbers, self.share = 0, set(), 1.0
        while self._choices:
            self._choices[-1].pop()
            if self._choices[-1]:
                return True
            self._choices.pop()
        return False


def joint_with_guesses(
    monkeypatch: pytest.MonkeyPatch,
    sampling: SamplingOptions,
    drafter: Callable[[], Drafter],
    rule: Verify,
) -> Wide:
    """(V, V, V) the same of what a continuation says."""
    ways, found = Ways(), np.zeros((TOKENS,) * 3)
    outcomes: dict[Any, Wide] = {}

    def decide(p: Floats, guess: int, q: Floats | None, random: np.random.Generator) -> int:
        key = (p.tobytes(), guess, None if q is None else q.tobytes())
        if key not in outcomes:
            outcomes[key] = outcome(rule, p, guess, q)
        return ways.draw(outcomes[key], random)

    for holder in (continuation, drafts):
        monkeypatch.setattr(holder, "draw", ways.draw)
    monkeypatch.setattr(continuation, "verify", decide)
    while True:
        ids, _ = continued(sampling, drafter(), 0)
        found[tuple(ids[1:])] += ways.share
        if not ways.next():
            return found


def counts(sampling: SamplingOptions, drafter: Callable[[], Drafter], texts: int) -> Wide:
    """(V, V, V) how often each three tokens followed the first new one."""
    found = np.zeros((TOKENS,) * 3)
    for number in range(texts):
        ids, _ = continued(sampling, drafter(), number)
        found[tuple(ids[1:])] += 1
    return found


def chi_square(found: Wide, sampling: SamplingOptions) -> float:
    """How far the counts are from what is expected, in standard deviations, about."""
    expected = found.sum() * joint(sampling)
    possible = expected > 0
    if found[~possible].any():
        return math.inf
    assert expected[possible].min() > 5
    degrees = int(possible.sum()) - 1
    square = float((np.square(found - expected)[possible] / expected[possible]).sum())
    # Wilson and Hilferty 1931: the cube root is nearly normal.
    variance = 2 / (9 * degrees)
    return ((square / degrees) ** (1 / 3) - (1 - variance)) / math.sqrt(variance)


def draft_model(sampling: SamplingOptions, logits: Floats = OTHER_LOGITS) -> Callable[[], Drafter]:
    chain: Any = Chain(logits)

    def drafter() -> Drafter:
        result = DraftModel(chain, sampling)
        result.begin(len(PROMPT), len(PROMPT) + 4)
        return result

    return drafter


PLAIN, NARROW = SamplingOptions(1.0), SamplingOptions(0.8, top_k=3)
CASES = [
    pytest.param(PLAIN, PromptLookup, id="prompt lookup"),
    pytest.param(NARROW, draft_model(NARROW), id="draft model"),
]


@pytest.mark.parametrize(("sampling", "drafter"), CASES)
def test_the_joint_distribution_of_three_tokens(
    monkeypatch: pytest.MonkeyPatch, sampling: SamplingOptions, drafter: Callable[[], Drafter]
) -> None:
    """In all digits that float32 and the bisection leave: no number of draws would tell as much."""
    found = joint_with_guesses(monkeypatch, sampling, drafter, verify)
    np.testing.assert_allclose(found, joint(sampling), atol=1e-6)


@pytest.mark.parametrize(("sampling", "drafter"), CASES)
@pytest.mark.parametrize("rule", WRONG[:2])
def test_wrong_rules_are_noticed_in_three_tokens(
    monkeypatch: pytest.MonkeyPatch,
    sampling: SamplingOptions,
    drafter: Callable[[], Drafter],
    rule: Verify,
) -> None:
    found = joint_with_guesses(monkeypatch, sampling, drafter, rule)
    assert np.abs(found - joint(sampling)).max() > 1e-3


@pytest.mark.parametrize(("sampling", "drafter"), CASES)
def test_what_is_drawn(sampling: SamplingOptions, drafter: Callable[[], Drafter]) -> None:
    """12,000 tokens. Chance alone lies 4 standard deviations off once in 30,000 times."""
    assert chi_square(counts(sampling, drafter, 4_000), sampling) < 4


def test_guesses_that_see_the_draws_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The random numbers of guesses must be others than those that accept them."""

    def same(self: Any, place: int, *, drafting: bool = False) -> np.random.Generator:
        return np.random.default_rng([*self._seed, place])

    monkeypatch.setattr(Continuation, "_random", same)
    assert chi_square(counts(NARROW, draft_model(NARROW), 2_000), NARROW) > 10
    with pytest.raises(AssertionError):
        joint_with_guesses(monkeypatch, NARROW, draft_model(NARROW), verify)


def test_guesses_of_the_same_distribution_all_hold() -> None:
    drafter = draft_model(NARROW, LOGITS)
    assert {continued(NARROW, drafter(), number)[1] for number in range(300)} == {2}
