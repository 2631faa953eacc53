"""Guesses at the next tokens, which one pass of the model then verifies all at once."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.generation.sampling import (
    SamplingOptions,
    draw,
    likeliest,
    next_token_distribution,
)
from numpy_bloom.running.memory import Needs
from numpy_bloom.running.runner import Runner, SequenceCache
from numpy_bloom.sizes import size_text
from numpy_bloom.weights.dtypes import Floats

PROMPT_LOOKUP = "prompt-lookup"

LONGEST_MATCH = 3
"""Tokens at the end of a text that are looked up in it, at most: a longer match is rarer, and
hardly better (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding)."""


class Draft(NamedTuple):
    """Guessed tokens.

    Attributes:
        ids: the tokens, the next one first.
        distributions: for each the probabilities (V,) from which it was drawn; None if it was
            certain.
    """

    ids: list[int]
    distributions: Sequence[Floats | None]


NO_DRAFT = Draft([], [])


class Drafter:
    """What makes guesses for one text. This one makes none.

    Attributes:
        model: that it guesses with, if any.
        rows: of V that a guess takes while a pass verifies it: its logits, and from a model the
            distribution that it was drawn from.
    """

    model: Runner | None = None
    rows = 0

    def has_room(self, tokens: int, capacity: int) -> bool:
        """Whether `begin` would succeed."""
        return True

    def begin(self, tokens: int, capacity: int) -> None:
        """Make room for the text, which joins a batch.

        Args:
            tokens: of the text when the first guess is made, at most.
            capacity: tokens of the whole text.

        Raises:
            NumpyBloomError: there is none.
        """

    def end(self) -> None:
        """Hold nothing any more: the text has left its batch, or not joined it."""

    def propose(self, ids: Sequence[int], count: int, random: "np.random.Generator") -> Draft:
        """Guess how a text goes on.

        Args:
            ids: the text so far.
            count: tokens wanted, at most.
            random: to draw with.
        """
        return NO_DRAFT


class PromptLookup(Drafter):
    """Guesses that the text goes on as it did when its last tokens occurred before, and so on."""

    rows = 1

    def propose(self, ids: Sequence[int], count: int, random: "np.random.Generator") -> Draft:
        text = np.asarray(ids)
        for length in range(min(LONGEST_MATCH, len(text) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(text[:-1], length)
            found = np.flatnonzero((windows == text[-length:]).all(axis=1))
            if found.size:
                after = int(found[-1]) + length
                guess = np.resize(text[after:], count).tolist()  # over again if it is short
                return Draft(guess, [None] * len(guess))
        return NO_DRAFT


class DraftModel(Drafter):
    """Guesses with a smaller model of the same vocabulary, which is held in memory whole.

    Args:
        model: the smaller model.
        sampling: how it chooses; as the larger one does.
    """

    rows = 2

    def __init__(self, model: Runner, sampling: SamplingOptions) -> None:
        self.model: Runner = model
        self._sampling = sampling
        self._cache: SequenceCache | None = None
        self._cached: list[int] = []  # what the cache holds

    def has_room(self, tokens: int, capacity: int) -> bool:
        return self.model.has_room(_needs(tokens, capacity), resident=True)

    def begin(self, tokens: int, capacity: int) -> None:
        if not self.has_room(tokens, capacity):
            raise NumpyBloomError(
                f"the draft model needs more than the {size_text(self.model.memory)} of memory "
                "that it may use, to be held there whole; choose a smaller one"
            )
        (self._cache,) = self.model.prepare(_needs(tokens, capacity))

    def end(self) -> None:
        self._cache, self._cached = None, []

    def propose(self, ids: Sequence[int], count: int, random: "np.random.Generator") -> Draft:
        assert self._cache is not None
        text = list(ids)
        known = common_prefix(self._cached, text[:-1])
        distributions: list[Floats | None] = []
        for _ in range(count):
            self._cached = text[:known]  # a pass that is interrupted spoils what comes after
            self._cache.length = known
            new = np.array(text[known:], dtype=np.int64)
            (logits,) = self.model.run([new], [self._cache])  # (V,)
            self._cached, known = list(text), len(text)
            if self._sampling.is_greedy:
                distributions.append(None)
                text.append(likeliest(logits, text, self._sampling))
            else:
                distribution = next_token_distribution(logits, text, self._sampling)
                distributions.append(distribution)
                text.append(draw(distribution, random))
        return Draft(text[len(ids) :], distributions)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts have in common from their beginning."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((place for place, (x, y) in pairs if x != y), min(len(a), len(b)))


def _needs(tokens: int, capacity: int) -> Needs:
    return Needs([capacity], pass_tokens=min(tokens, capacity), logit_rows=1)
