"""Sampling with guesses: the distribution is that without, exactly for one and jointly for three.

The acceptance rule is tested twice. `verify` draws on two random numbers; the shares of them that
lead to each token are found by bisection, so its distribution is known to nine digits, and is
compared with p itself. What `Continuation` makes of it is counted, over a Markov chain whose
transitions are known.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from numpy_bloom.generation import continuation
from numpy_bloom.generation.continuation import Continuation
from numpy_bloom.generation.drafts import Drafter, DraftModel, PromptLookup
from numpy_bloom.generation.sampling import SamplingOptions, draw, verify
from numpy_bloom.generation.text import TextStream

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Verify = Callable[[Floats, int, Floats | None, np.random.Generator], int]


def accepts_always(p: Floats, guess: int, q: Floats | None, random: np.random.Generator) -> int:
    return guess


def draws_from_p_when_it_rejects(
    p: Floats, guess: int, q: Floats | None, random: np.random.Generator
) -> int:
    share = 1 if q is None else q[guess]
    return guess if random.random() * share < p[guess] else draw(p, random)


def accepts_with_p(p: Floats, guess: int, q: Floats | None, random: np.random.Generator) -> int:
    if random.random() < p[guess]:
        return guess
    rest = p.copy() if q is None else np.maximum(p - q, 0)
    rest[guess] = 0
    return draw(rest if rest.any() else p, random)


WRONG = [accepts_always, draws_from_p_when_it_rejects, accepts_with_p]


# --- one guess ------------------------------------------------------------------------------------


class Given(np.random.Generator):
    """A source of randomness that gives these numbers.

    Attributes:
        left: those that it has not given yet.
    """

    def __init__(self, *values: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.left = list(values)

    def random(self, *_args: Any, **_options: Any) -> Any:
        return self.left.pop(0)


def share_below(holds: Callable[[float], bool]) -> float:
    """Up to which number in [0, 1) something holds, to 2^-30."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low if low == 0 else high


def outcome(rule: Verify, p: Floats, guess: int, q: Floats | None) -> Wide:
    """(V,) how probable each token is after a guess.

    Of two random numbers the first decides whether the guess is kept; if it is not, the second one
    decides on a token, which may be the guess as well.
    """
    last = math.nextafter(1, 0)

    def kept(first: float) -> bool:
        source = Given(first, last)
        rule(p, guess, q, source)
        return len(source.left) > 0

    def drawn(second: float) -> int:
        return rule(p, guess, q, Given(last, second))

    result = np.zeros(len(p))
    result[guess] = accepted = share_below(kept)
    if accepted < 1:
        sums = [share_below(lambda x, i=i: drawn(x) <= i) for i in range(len(p))]  # type: ignore[misc]
        result += (1 - accepted) * np.diff(sums, prepend=0)
    return result


def distributions() -> Iterator[Floats]:
    """Random ones, some with zeros, some certain, in float32 as softmax makes them."""
    random = np.random.default_rng(0)
    for number in range(120):
        shares = random.dirichlet(np.full(5, 0.5 + number % 3))
        shares[random.permutation(5)[: number % 5]] = 0
        yield (shares / shares.sum()).astype(np.float32)


def check_rule(rule: Verify) -> None:
    """p and q are rounded to float32, and the bisection to 2^-30."""
    pairs = itertools.pairwise(distributions())
    for p, q in [*pairs, *((p, p) for p in itertools.islice(distributions(), 10))]:
        guesses = np.flatnonzero(q)
        parts = [q[guess] * outcome(rule, p, int(guess), q) for guess in guesses]
        np.testing.assert_allclose(sum(parts), p, atol=1e-6)


def check_rule_of_certain_guesses(rule: Verify) -> None:
    for p in itertools.islice(distributions(), 40):
        for guess in range(5):
            np.testing.assert_allclose(outcome(rule, p, guess, None), p, atol=1e-6)


def test_the_rule() -> None:
    check_rule(verify)
    check_rule_of_certain_guesses(verify)


@pytest.mark.parametrize("rule", WRONG)
def test_wrong_rules_are_noticed(rule: Verify) -> None:
    for check in (check_rule, check_rule_of_certain_guesses):
        if (rule, check) != (accepts_with_p, check_rule_of_certain_guesses):  # there it is right
            with pytest.raises(AssertionError):
                check(rule)


def test_as_many_guesses_are_kept_as_can_be() -> None:
    """The share of p and q that is common (Leviathan et al., corollary 3.6), and no less."""
    for p, q in itertools.pairwise(distributions()):
        kept = 0.0
        for guess in np.flatnonzero(q):
            kept += q[guess] * outcome(verify, p, int(guess), q)[guess]
        assert kept == pytest.approx(float(np.minimum(p, q).sum()), abs=1e-6)


# --- three tokens ---------------------------------------------------------------------------------

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

    def has_room(self, **_room: Any) -> bool:
        return True

    def prepare(self, **_room: Any) -> Any:
        return [SimpleNamespace(length=0)]

    def run(self, sequences: Any, caches: Any) -> Floats:
        (ids,), (cache,) = sequences, caches
        cache.length += len(ids)
        return np.array(self._logits[ids[-1:]])


def continued(sampling: SamplingOptions, drafter: Drafter, number: int) -> tuple[list[int], int]:
    """Four new tokens after the prompt, with two guesses at a time, and the passes they took."""
    text = Continuation(
        PROMPT,
        max_new_tokens=4,
        eos_token_ids=(),
        text=TextStream(None),
        sampling=sampling,
        seed=[1 << 40, number],
        drafter=drafter,
        draft_tokens=2,
    )
    text.cache = SimpleNamespace(length=0)  # type: ignore[assignment]
    for passes in itertools.count(1):
        ids = text.feed()
        text.take(LOGITS[ids[-text.rows :]])
        if text.finish_reason is not None:
            return text.token_ids, passes
    raise AssertionError


def counts(sampling: SamplingOptions, drafter: Callable[[], Drafter], texts: int) -> Wide:
    """How often each three tokens followed the first new one, which nobody guesses."""
    found = np.zeros((TOKENS,) * 3)
    for number in range(texts):
        ids, _ = continued(sampling, drafter(), number)
        found[tuple(ids[1:])] += 1
    return found


def chi_square(found: Wide, sampling: SamplingOptions) -> float:
    """How far the counts are from what is expected, in standard deviations, about."""
    after = transitions(sampling)
    first = after[PROMPT[-1]]
    joint = np.einsum("a,ab,bc,cd->bcd", first, after, after, after)
    expected = found.sum() * joint
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
    sampling: SamplingOptions, drafter: Callable[[], Drafter]
) -> None:
    """Of 105,000 draws. Chance alone lies 4 standard deviations off once in 30,000 times."""
    assert chi_square(counts(sampling, drafter, 35_000), sampling) < 4


@pytest.mark.parametrize(("sampling", "drafter"), CASES)
@pytest.mark.parametrize("rule", WRONG[:2])
def test_wrong_rules_are_noticed_in_three_tokens(
    monkeypatch: pytest.MonkeyPatch,
    sampling: SamplingOptions,
    drafter: Callable[[], Drafter],
    rule: Verify,
) -> None:
    monkeypatch.setattr(continuation, "verify", rule)
    assert chi_square(counts(sampling, drafter, 5_000), sampling) > 10


def test_guesses_that_see_the_draws_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The random numbers of guesses must be others than those that accept them."""

    def same(self: Any, place: int, *, drafting: bool = False) -> np.random.Generator:
        return np.random.default_rng([*self._seed, place])

    monkeypatch.setattr(Continuation, "_random", same)
    assert chi_square(counts(NARROW, draft_model(NARROW), 5_000), NARROW) > 10


def test_guesses_of_the_same_distribution_all_hold() -> None:
    drafter = draft_model(NARROW, LOGITS)
    assert {continued(NARROW, drafter(), number)[1] for number in range(300)} == {2}
