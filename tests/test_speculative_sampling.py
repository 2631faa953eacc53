"""Sampling with a guess: the distribution is that without.

`verify` draws on two random numbers; the shares of them that lead to each token are found by
bisection, so its distribution is known to nine digits, and is compared with p itself.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from support.acceptance import WRONG, Floats, Verify, accepts_with_p, outcome

from numpy_bloom.generation.sampling import verify


def distributions() -> Iterator[Floats]:
    """Random ones, some with zeros, some certain, in float32 as softmax makes them."""
    random = np.random.default_rng(0)
    for number in range(60):
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
