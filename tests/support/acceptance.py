"""What becomes of a guess: how probable each token is then, and rules that are wrong."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from numpy_bloom.generation.sampling import draw

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
