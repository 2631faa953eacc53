"""From the logits of one position to the next token.

The options and their order are those of transformers' logits processors: repetition penalty,
temperature, top-k, top-p, min-p. Each step is a function of logits (V,) that sets what it
rules out to -inf.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from numpy_bloom.errors import OptionError, check_whole, shown
from numpy_bloom.model.primitives import log_softmax, softmax
from numpy_bloom.weights.dtypes import Floats

INTERVALS: list[tuple[str, str, Callable[[Any], bool]]] = [
    ("temperature", "[0, inf)", lambda value: 0 <= value < math.inf),
    ("top_p", "(0, 1]", lambda value: 0 < value <= 1),
    ("min_p", "[0, 1]", lambda value: 0 <= value <= 1),
    ("repetition_penalty", "(0, inf)", lambda value: 0 < value < math.inf),
]
"""In which options must lie, as their errors say and as it is checked."""


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen. Without any option: greedily, the likeliest one.

    Attributes:
        temperature: the logits are divided by it; 0 is greedy. Default: 1 if `top_k`, `top_p` or
            `min_p` is given, else 0.
        top_k: keep the k likeliest tokens.
        top_p: keep the fewest likeliest tokens whose probabilities add up to p (nucleus sampling,
            Holtzman et al. 2019, https://arxiv.org/abs/1904.09751).
        min_p: keep tokens with at least this fraction of the likeliest one's probability
            (Nguyen et al. 2024, https://arxiv.org/abs/2407.01082).
        repetition_penalty: logits of tokens that occurred are divided by it if positive, else
            multiplied (Keskar et al. 2019, https://arxiv.org/abs/1909.05858); 1 changes nothing.
        seed: makes the draws repeatable.

    Raises:
        OptionError: a value is out of range; the message names the interval.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, interval, holds in INTERVALS:
            value = getattr(self, name)
            if value is None and getattr(SamplingOptions, name) is None:
                continue
            if not isinstance(value, Real) or not holds(value):
                raise OptionError(f"{name} is {shown(value)}; expected a value in {interval}")
        if self.top_k is not None:
            check_whole("top_k", self.top_k, 1)
        if self.seed is not None:
            check_whole("seed", self.seed, 0, math.inf)

    @property
    def effective_temperature(self) -> float:
        """The temperature with its default filled in."""
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.top_k is self.top_p is self.min_p is None else 1.0

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is chosen."""
        return self.effective_temperature == 0


def penalize_repetition(logits: Floats, ids: npt.ArrayLike, penalty: float) -> Floats:
    """Make the tokens of `ids` less likely (if penalty > 1). Their logits may become infinite."""
    logits = logits.copy()
    seen = np.unique(np.asarray(ids, dtype=np.int64))
    scores = logits[seen]
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        factor = np.float32(penalty)
        logits[seen] = np.where(scores < 0, scores * factor, scores / factor)
    return logits


def keep_top_k(logits: Floats, k: int) -> Floats:
    """Keep the k largest logits, and all that are equal to the k-th."""
    k = min(k, len(logits))
    return _keep(logits, logits >= np.partition(logits, -k)[-k])


def keep_top_p(logits: Floats, p: float) -> Floats:
    """Drop the least likely tokens as long as their probabilities add up to no more than 1 - p."""
    order = np.argsort(logits, kind="stable")  # ascending
    # Summed in float64, compared in float32, as torch does: among equal logits each digit counts.
    sums = np.cumsum(softmax(logits[order]), dtype=np.float64).astype(np.float32)
    dropped = sums <= 1 - p
    dropped[-1] = False
    kept = np.empty_like(dropped)
    kept[order] = ~dropped
    return _keep(logits, kept)


def keep_min_p(logits: Floats, p: float) -> Floats:
    """Keep tokens with at least p times the probability of the likeliest."""
    probabilities = softmax(logits)
    return _keep(logits, probabilities >= np.float32(p) * probabilities.max())


def _keep(logits: Floats, kept: npt.NDArray[np.bool_]) -> Floats:
    return np.where(kept, logits, np.float32(-np.inf))


def likeliest(logits: Floats, ids: npt.ArrayLike, options: SamplingOptions) -> int:
    """The token that is chosen greedily, the first of those that are equally likely.

    Args:
        logits: (V,) float32.
        ids: the sequence so far, prompt included.
    """
    if options.repetition_penalty != 1:
        logits = penalize_repetition(logits, ids, options.repetition_penalty)
    return int(logits.argmax())


def log_probability(logits: Floats, token_id: int) -> float:
    """Natural logarithm of one token's probability.

    Args:
        logits: (V,) float32.
    """
    return float(log_softmax(logits)[token_id])


def next_token_distribution(logits: Floats, ids: npt.ArrayLike, options: SamplingOptions) -> Floats:
    """The probabilities from which the next token is drawn.

    Args:
        logits: (V,) float32.
        ids: the sequence so far, prompt included.

    Returns:
        (V,) float32 with sum 1; a single 1 if it is chosen greedily.
    """
    if options.repetition_penalty != 1:
        logits = penalize_repetition(logits, ids, options.repetition_penalty)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        scaled = logits / np.float32(options.effective_temperature)
    # At temperature 0, or so near to it that float32 overflows, the likeliest token is certain.
    if not np.isfinite(scaled.max()):
        certain = np.zeros_like(logits)
        certain[logits.argmax()] = 1
        return certain
    logits = scaled
    if options.top_k is not None:
        logits = keep_top_k(logits, options.top_k)
    if options.top_p is not None and options.top_p < 1:
        logits = keep_top_p(logits, options.top_p)
    if options.min_p is not None:
        logits = keep_min_p(logits, options.min_p)
    return softmax(logits)


def random_seed(seed: int | None = None) -> int:
    """A number that draws depend on; without a seed another one each time."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])


def draw(probabilities: Floats, random: "np.random.Generator") -> int:
    """Draw an index with the given probabilities."""
    cumulative = np.cumsum(probabilities, dtype=np.float64)
    # `random()` is below 1, so the point lies below the last sum and never on a token with none.
    point = random.random() * cumulative[-1]
    return int(np.searchsorted(cumulative, point, side="right"))


def verify(
    probabilities: Floats, guess: int, guessed_with: Floats | None, random: "np.random.Generator"
) -> int:
    """Draw an index with the given probabilities, the guess if that can be.

    The guess is kept with the probability min(1, p / q), else one is drawn from max(p - q, 0): so
    the result is distributed as if there had been no guess (Leviathan, Kalman and Matias 2023,
    https://arxiv.org/abs/2211.17192; Chen et al. 2023, https://arxiv.org/abs/2302.01318).

    Args:
        probabilities: (V,) float32, p.
        guess: the guessed index.
        guessed_with: (V,) float32, the probabilities q with which it was drawn; None if it was
            certain.
    """
    if guessed_with is None:
        guessed_with = np.zeros_like(probabilities)
        guessed_with[guess] = 1
    if random.random() * guessed_with[guess] < probabilities[guess]:
        return guess
    rest = np.maximum(probabilities - guessed_with, 0)
    return draw(rest if rest.any() else probabilities, random)
