"""Beam search: the likeliest continuation among several that are followed at once."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import numpy as np

from numpy_bloom.errors import OptionError, check_whole, shown
from numpy_bloom.generation.beam_caches import BeamCache, reorder_caches
from numpy_bloom.generation.continuation import Continuation, PassStats, Token
from numpy_bloom.generation.generation import Generation
from numpy_bloom.generation.options import MOST_SEQUENCES, GenerationOptions
from numpy_bloom.generation.sampling import SamplingOptions, penalize_repetition
from numpy_bloom.generation.text import TextStream
from numpy_bloom.model.primitives import log_softmax
from numpy_bloom.running.memory import Needs
from numpy_bloom.running.runner import Runner, check_finite
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
        check_whole("num_beams", self.num_beams, 1, MOST_SEQUENCES)
        check_whole("max_new_tokens", self.max_new_tokens, 1)
        SamplingOptions(repetition_penalty=self.repetition_penalty)  # checks it
        penalty = self.length_penalty
        if not isinstance(penalty, Real) or not -math.inf < penalty < math.inf:
            raise OptionError(
                f"length_penalty is {shown(penalty)}; expected a value in (-inf, inf)"
            )
        if self.early_stopping not in (False, True):
            raise OptionError(
                f"early_stopping is {shown(self.early_stopping)}; expected True or False"
            )


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


CANDIDATE_BYTES = 60
"""Of a continuation that may play a part: its score, log-probability, token id, beam, and place."""

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
    count = most_of_each(options)
    found = []  # of each beam: scores, log-probabilities, token ids
    for beam, row in zip(running, logits, strict=True):
        logprobs = log_softmax(row)  # (V,)
        scores = logprobs
        if options.repetition_penalty != 1:
            seen = prompt_token_ids + beam.token_ids
            scores = penalize_repetition(logprobs, seen, options.repetition_penalty)
        with np.errstate(over="ignore"):
            scores = beam.score + scores
        rank = min(count, len(scores))
        ids = np.flatnonzero(scores >= np.partition(scores, -rank)[-rank])
        found.append((scores[ids], logprobs[ids], ids))
    numbers = np.repeat(np.arange(len(found)), [len(ids) for _, _, ids in found])
    scores, logprobs, ids = (np.concatenate(parts) for parts in zip(*found, strict=True))
    most = options.num_beams * (1 + len(options.eos_token_ids))  # each beam may end in each way
    return [
        Beam(
            [*running[numbers[place]].token_ids, int(ids[place])],
            [*running[numbers[place]].logprobs, float(logprobs[place])],
            scores[place],
        )
        for place in np.argsort(-scores, kind="stable")[:most]
    ]


def most_of_each(options: BeamOptions) -> int:
    """Continuations of one beam that can play a part: `num_beams` that do not end, even if all that
    do are better."""
    return options.num_beams + len(options.eos_token_ids)


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
        self, model: Runner, prompt_token_ids: list[int], text: TextStream, options: BeamOptions
    ) -> None:
        super().__init__(
            Continuation(
                prompt_token_ids,
                GenerationOptions(max_new_tokens=options.max_new_tokens),
                eos_token_ids=options.eos_token_ids,
                text=text,
                seed=(),
            )
        )
        self.score: float | None = None
        self._model = model
        self._options = options
        self._beams = START
        count = options.num_beams
        candidates = count * min(most_of_each(options), model.config.vocab_size)
        needs = Needs(
            [self._continuation.cache_tokens] * count,
            pass_tokens=max(len(prompt_token_ids), count),
            logit_rows=count,
            beside=CANDIDATE_BYTES * candidates,
        )
        self._caches = [BeamCache(cache) for cache in model.prepare(needs)]

    def _next_token(self) -> Token | None:
        while not is_over(self._beams, self._options):
            self._step()
        text = self._continuation
        if text.finish_reason is None:
            best = self._beams.ended[0]
            self.score = float(best.score)
            self._caches = []
            text.add(list(zip(best.token_ids, best.logprobs, strict=True)))
        return text.take_token() if text.is_ready else None

    def _step(self) -> None:
        """Make one pass. If it is cut short by Ctrl-C, it can be repeated."""
        start, read = time.perf_counter(), self._model.bytes_read
        texts = [self.prompt_token_ids + beam.token_ids for beam in self._beams.running]
        fed = len(texts[0]) if self._beams is START else 1  # tokens of each
        caches = reorder_caches(self._caches, [text[:-fed] for text in texts])
        for one, text in zip(caches, texts, strict=True):
            one.cache.length = len(text) - fed
        logits = self._model.run(
            [np.array(text[-fed:], dtype=np.int64) for text in texts],
            [one.cache for one in caches],
        )
        check_finite(logits, self._model)
        beams = advance(self._beams, logits, self.prompt_token_ids, self._options)
        for one, text in zip(caches, texts, strict=True):
            one.text = text
        self._beams = beams
        self._continuation.passes.append(PassStats.since(start, read, self._model))
