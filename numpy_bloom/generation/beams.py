"""Beam search: the likeliest continuation among several that are followed at once."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from numpy_bloom.errors import OptionError, check_whole
from numpy_bloom.generation.continuation import Continuation, PassStats, Token
from numpy_bloom.generation.loop import Generation
from numpy_bloom.generation.sampling import SamplingOptions, penalize_repetition
from numpy_bloom.generation.text import TextStream
from numpy_bloom.model.cache import KVCache
from numpy_bloom.model.model import Model, check_finite
from numpy_bloom.weights.dtypes import Floats


@dataclass(frozen=True)
class BeamOptions:
    """How a beam search goes, and when it ends. The options are those of transformers' `generate`.

    Attributes:
        num_beams: continuations that are followed at once, and most that are kept of those that
            have ended.
        max_new_tokens: of each.
        eos_token_ids: any of these ends a continuation.
        length_penalty: the score of one that has ended is the sum of its tokens' log-probabilities
            divided by their number (an end-of-text token counts) to the power of this. Sums are
            negative, so above 0 it favours long continuations (Wu et al. 2016,
            https://arxiv.org/abs/1609.08144, have another formula).
        early_stopping: end as soon as `num_beams` continuations have ended. Else go on until the
            best that is still followed would not, if it ended now, be among the best that have.
        repetition_penalty: as in `SamplingOptions`, but of log-probabilities instead of logits.

    Raises:
        OptionError: a value is out of range; the message names the interval.
    """

    num_beams: int
    max_new_tokens: int
    eos_token_ids: Sequence[int] = ()
    length_penalty: float = 1.0
    early_stopping: bool = False
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_whole("num_beams", self.num_beams, 1)
        check_whole("max_new_tokens", self.max_new_tokens, 1)
        SamplingOptions(repetition_penalty=self.repetition_penalty)  # checks it
        if not math.isfinite(self.length_penalty):
            raise OptionError(
                f"length_penalty is {self.length_penalty}; expected a value in (-inf, inf)"
            )
        if self.early_stopping not in (False, True):
            raise OptionError(f"early_stopping is {self.early_stopping!r}; expected True or False")


class Beam(NamedTuple):
    """A continuation.

    Attributes:
        token_ids: its new tokens.
        logprobs: natural logarithm of each one's probability under the model itself.
        score: sum of them, after the repetition penalty; if it has ended, with length penalty.
    """

    token_ids: list[int]
    logprobs: list[float]
    score: np.float32


class Beams(NamedTuple):
    """Where a search is.

    Attributes:
        running: continuations that are followed, all equally long, the best first.
        ended: the best of those that have ended, the best first.
    """

    running: list[Beam]
    ended: list[Beam]


START = Beams([Beam([], [], np.float32(0))], [])


def advance(
    beams: Beams, logits: Floats, prompt_token_ids: list[int], options: BeamOptions
) -> Beams:
    """Go on by one token.

    Of all continuations by one token the best `num_beams` count; those of them that end are
    compared with those that have ended before. The best `num_beams` that do not end go on.

    Args:
        logits: (B, V) float32, a row for each of `running`.
    """
    count = options.num_beams
    ranked = _continuations(beams.running, logits, prompt_token_ids, options)
    ended = [
        beam._replace(score=_penalized(beam.score, len(beam.token_ids), options))
        for beam in ranked[:count]
        if _ends(beam, options)
    ]
    return Beams(
        running=[beam for beam in ranked if not _ends(beam, options)][:count],
        ended=_best_first(beams.ended + ended)[:count],
    )


def is_over(beams: Beams, options: BeamOptions) -> bool:
    """Whether the best of those that have ended is the result."""
    if not beams.running:
        return True
    if len(beams.ended) < options.num_beams:
        return False
    best = beams.running[0]
    possible = _penalized(best.score, len(best.token_ids), options)
    return options.early_stopping or bool(possible <= beams.ended[-1].score)


def _continuations(
    running: list[Beam], logits: Floats, prompt_token_ids: list[int], options: BeamOptions
) -> list[Beam]:
    """Continuations of beams by one token, the best first; all that can play a part."""
    # Of each beam, num_beams that do not end, even if all that do are better.
    count = options.num_beams + len(options.eos_token_ids)
    found = []
    for beam, row in zip(running, logits, strict=True):
        logprobs = log_softmax(row)  # (V,)
        scores = logprobs
        with np.errstate(over="ignore"):
            if options.repetition_penalty != 1:
                seen = prompt_token_ids + beam.token_ids
                scores = penalize_repetition(logprobs, seen, options.repetition_penalty)
            scores = beam.score + scores
        rank = min(count, len(scores))
        for token_id in np.flatnonzero(scores >= np.partition(scores, -rank)[-rank]).tolist():
            token_ids = [*beam.token_ids, token_id]
            found.append(
                Beam(token_ids, [*beam.logprobs, float(logprobs[token_id])], scores[token_id])
            )
    return _best_first(found)


def _best_first(beams: list[Beam]) -> list[Beam]:
    return sorted(beams, key=lambda beam: beam.score, reverse=True)


def _ends(beam: Beam, options: BeamOptions) -> bool:
    return (
        beam.token_ids[-1] in options.eos_token_ids or len(beam.token_ids) == options.max_new_tokens
    )


def _penalized(score: np.float32, tokens: int, options: BeamOptions) -> np.float32:
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        penalty = np.float32(np.float64(tokens) ** options.length_penalty)
        return np.float32(score / penalty)


def log_softmax(logits: Floats) -> Floats:
    """Natural logarithms of the softmax.

    Args:
        logits: (V,) float32.

    Returns:
        (V,) float32.
    """
    below_top: Floats = logits - logits.max()
    return below_top - np.float32(np.log(np.exp(below_top).sum()))


@dataclass(eq=False)
class _Seat:
    """A cache, and the text whose keys and values it holds; there may be more in it."""

    cache: KVCache
    text: list[int] = field(default_factory=list)

    def holds(self, text: list[int]) -> bool:
        return self.text[: len(text)] == text


def _seated(seats: list[_Seat], texts: list[list[int]]) -> list[_Seat]:
    """Give each text a seat that holds it.

    A text that a seat holds stays there. Where several stem from one, the others take seats whose
    texts nobody follows any more, and what those do not have in common with them is copied. What
    is needed is never written over, so after an interruption the same can be done again.

    Args:
        seats: at least as many as texts; for each text one of them holds it.
    """
    free = list(seats)
    result: list[_Seat | None] = []
    for text in texts:
        seat = next((seat for seat in free if seat.holds(text)), None)
        if seat is not None:
            free.remove(seat)
        result.append(seat)
    staying = [seat for seat in result if seat is not None]
    for place, text in enumerate(texts):
        if result[place] is None:
            source = next(seat for seat in staying if seat.holds(text))
            seat = max(free, key=lambda seat: _common(seat.text, text))
            free.remove(seat)
            seat.cache.copy_prefix(source.cache, len(text), _common(seat.text, text))
            seat.text = text
            result[place] = seat
    return [seat for seat in result if seat is not None]


def _common(a: list[int], b: list[int]) -> int:
    """How many tokens two texts have in common from their beginning."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((place for place, (x, y) in pairs if x != y), min(len(a), len(b)))


class BeamSearch(Generation):
    """The best continuation of one prompt that a beam search finds.

    All beams are sequences of the same passes. It is computed when its first token is asked for.

    Memory: keys and values of the prompt and all new tokens, `num_beams` times. Beams that change
    places need no more: they are copied over beams that nobody follows any more.

    Args:
        model: computes.
        prompt_token_ids: the prompt.
        text: makes text of the result.
        options: how it goes.

    Attributes:
        prompt_token_ids: the prompt.
        score: of the result, a stop text and what came after it included; None before.

    Raises:
        NumpyBloomError: it does not fit in memory.
    """

    def __init__(
        self, model: Model, prompt_token_ids: list[int], text: TextStream, options: BeamOptions
    ) -> None:
        self.prompt_token_ids = prompt_token_ids
        self.score: float | None = None
        self._model = model
        self._options = options
        self._continuation = self._best = Continuation(
            prompt_token_ids,
            max_new_tokens=options.max_new_tokens,
            eos_token_ids=options.eos_token_ids,
            text=text,
            sampling=SamplingOptions(),
            seed=(),
        )
        self._beams = START
        count = options.num_beams
        caches = model.prepare(
            cache_tokens=[self._best.cache_tokens] * count,
            pass_tokens=max(len(prompt_token_ids), count),
            logit_rows=count,
        )
        self._seats = [_Seat(cache) for cache in caches]

    def __next__(self) -> Token:
        while not is_over(self._beams, self._options):
            self._step()
        if self._best.finish_reason is None:
            best = self._beams.ended[0]
            self.score = float(best.score)
            self._seats = []
            self._best.add(list(zip(best.token_ids, best.logprobs, strict=True)))
        if not self._best.is_ready:
            raise StopIteration
        return self._best.take_token()

    def _step(self) -> None:
        """Make one pass. If it is cut short by Ctrl-C, it can be repeated."""
        start, read = time.perf_counter(), self._model.stream.bytes_read
        texts = [self.prompt_token_ids + beam.token_ids for beam in self._beams.running]
        fed = len(texts[0]) if self._beams is START else 1  # tokens of each
        seats = _seated(self._seats, [text[:-fed] for text in texts])
        for seat, text in zip(seats, texts, strict=True):
            seat.cache.length = len(text) - fed
        logits = self._model.run(
            [np.array(text[-fed:], dtype=np.int64) for text in texts],
            [seat.cache for seat in seats],
        )
        check_finite(logits)
        beams = advance(self._beams, logits, self.prompt_token_ids, self._options)
        for seat, text in zip(seats, texts, strict=True):
            seat.text = text
        self._beams = beams
        self._best.passes.append(
            PassStats(
                time.perf_counter() - start,
                self._model.stream.bytes_read - read,
                self._model.stream.bytes_pinned,
            )
        )
