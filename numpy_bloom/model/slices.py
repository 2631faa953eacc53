"""Slices of a long prompt: what is not a product with weights is done some tokens at a time.

It keeps the intermediates small, and gives every core its share.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from numpy_bloom.model.tap import Tap, no_tap
from numpy_bloom.weights.team import Team

SLICE_TOKENS = 32
"""Tokens of one sequence in a slice."""

Slice = TypeVar("Slice")


def token_slices(tokens: int) -> list[slice]:
    """Consecutive slices of so many tokens."""
    return [
        slice(start, min(start + SLICE_TOKENS, tokens)) for start in range(0, tokens, SLICE_TOKENS)
    ]


def for_each(
    slices: Sequence[Slice], work: Callable[[Slice], object], team: Team, tap: Tap
) -> None:
    """Work on every slice: in order if somebody taps, else on all cores at once."""
    if tap is no_tap and len(slices) > 1:
        team.run(work, iter(slices))
    else:
        for part in slices:
            work(part)
