"""Guesses at the next tokens, which one pass of the model then verifies all at once."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.generation.sampling import SamplingOptions, draw, next_token_distribution
from numpy_bloom.model.cache import KVCache
from numpy_bloom.model.forward import TokenIds
from numpy_bloom.model.model import Model
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


class Drafter(Protocol):
    """What makes guesses for one text."""

    def propose(self, ids: Sequence[int], count: int, random: "np.random.Generator") -> Draft:
        """Guess how a text goes on.

        Args:
            ids: the text so far.
            count: tokens wanted, at most.
            random: to draw with.
        """


class PromptLookup:
    """Guesses that the text goes on as it did when its last tokens occurred before."""

    def propose(self, ids: Sequence[int], count: int, random: "np.random.Generator") -> Draft:
        text = np.asarray(ids)
        for length in range(min(LONGEST_MATCH, len(text) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(text[:-1], length)
            found = np.flatnonzero((windows == text[-length:]).all(axis=1))
            if found.size:
                after = int(found[-1]) + length
                guess = text[after : after + count].tolist()
                return Draft(guess, [None] * len(guess))
        return Draft([], [])


class DraftModel:
    """Guesses with a smaller model of the same vocabulary.

    Args:
        model: the smaller model.
        cache: of that model, with room for the whole text.
        sampling: how it chooses; as the larger one does.
    """

    def __init__(self, model: Model, cache: KVCache, sampling: SamplingOptions) -> None:
        self._model = model
        self._cache = cache
        self._sampling = sampling
        self._cached: list[int] = []  # what the cache holds

    def propose(self, ids: Sequence[int], count: int, random: "np.random.Generator") -> Draft:
        text = list(ids)
        known = common_prefix(self._cached, text[:-1])
        distributions: list[Floats | None] = []
        for _ in range(count):
            self._cached = text[:known]  # a pass that is interrupted spoils what comes after
            self._cache.length = known
            new = np.array(text[known:], dtype=np.int64)
            (logits,) = self._model.run([new], [self._cache])  # (V,)
            self._cached, known = list(text), len(text)
            distribution = next_token_distribution(logits, text, self._sampling)
            distributions.append(distribution)
            text.append(draw(distribution, random))
        return Draft(text[len(ids) :], distributions)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts have in common from their beginning."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((place for place, (x, y) in pairs if x != y), min(len(a), len(b)))


def draft_models(
    model: Model, texts: Sequence[TokenIds], max_new_tokens: int, sampling: SamplingOptions
) -> list[DraftModel]:
    """A drafter for each text, all with one smaller model.

    Raises:
        NumpyBloomError: the model does not fit into its memory whole.
    """
    capacities = [len(ids) + max_new_tokens - 1 for ids in texts]
    caches = model.prepare(cache_tokens=capacities, pass_tokens=max(capacities), logit_rows=1)
    if model.memory < model.memory_for_all:
        raise NumpyBloomError(
            f"the draft model needs {model.memory_for_all / 1e6:,.1f} MB of memory to be held "
            f"there whole, {model.memory / 1e6:,.1f} MB may be used; choose a smaller one"
        )
    return [DraftModel(model, cache, sampling) for cache in caches]
