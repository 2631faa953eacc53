"""How well a model predicts a text of any length: windows over its tokens, and what they score."""

import math
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np

from numpy_bloom.errors import NumpyBloomError, OptionError, check_whole
from numpy_bloom.model.forward import TokenIds
from numpy_bloom.running.memory import Needs
from numpy_bloom.running.runner import Runner, check_finite
from numpy_bloom.text_file import Text
from numpy_bloom.weights.budget import peak_memory_bytes
from numpy_bloom.weights.dtypes import Floats

WINDOW = 2048
"""Tokens of a window: the sequence length in training, table 3 of the BLOOM paper
(https://arxiv.org/abs/2211.05100)."""

PASS_TOKENS = 8192
"""A pass that takes several windows takes no more tokens than these. Each weight then serves 16,384
operations: a processor that does 10^12 a second is kept busy by a disk that reads 125 MB of
bfloat16 numbers a second."""


class Window(NamedTuple):
    """Some tokens of a text, the last of which are scored.

    Attributes:
        begin, end: its place in the text.
        scored: how many of its last tokens no window before it has scored.
    """

    begin: int
    end: int
    scored: int


class Windows:
    """Windows over a text that score every token once, but for the first, which has no context.

    The first window scores all its tokens but the first; each further one those behind the window
    before it, which have at least `size - stride` tokens of context.

    Args:
        tokens: of the text.
        size: tokens of a window, at least 2; no more are used than the text has.
        stride: tokens between the beginnings of two windows, less than `size`. Default: half of it.

    Attributes:
        tokens, size, stride: as they are used.

    Raises:
        NumpyBloomError: the text has less than two tokens.
        OptionError: size or stride is out of range.
    """

    def __init__(self, tokens: int, size: int = WINDOW, stride: int | None = None) -> None:
        check_window(size, stride)
        if tokens < 2:
            raise NumpyBloomError(
                f"the text is too short: {tokens} token{'' if tokens == 1 else 's'}, expected at "
                "least two, for the first has no context"
            )
        self.tokens = tokens
        self.size = min(size, tokens)
        self.stride = self.size // 2 if stride is None else min(stride, self.size - 1)

    def __len__(self) -> int:
        return 1 + math.ceil((self.tokens - self.size) / self.stride)

    def __iter__(self) -> Iterator[Window]:
        begin, done = 0, 1
        while done < self.tokens:
            end = min(begin + self.size, self.tokens)
            yield Window(begin, end, end - done)
            begin, done = begin + self.stride, end


def check_window(size: int, stride: int | None) -> None:
    """Check the options of `Windows`.

    Raises:
        OptionError: a window has no context, or the stride leaves none or does not move on.
    """
    check_whole("window", size, 2)
    if stride is not None and not 1 <= stride < size:
        raise OptionError(
            f"stride is {stride}; expected a value in [1, {size - 1}], less than the window, whole"
        )


def windows_per_pass(model: Runner, windows: Windows) -> int:
    """How many windows go through the weights together, at least one.

    If all weights fit into memory beside a pass with one window, then as many as leave them there.
    If they do not, as many as take half of what is left beside vectors and buffers, for the more
    there are, the less often the weights are read; the other half holds weights.
    """

    def too_large(count: int, *, resident: bool) -> bool:
        context, targets = _largest_pass(windows, count)
        return not model.has_room_for_pass(
            count * context, context, target_rows=targets, resident=resident
        )

    resident = not too_large(1, resident=True)
    counts = range(1, 1 + min(len(windows), PASS_TOKENS // (windows.size - 1)))
    return max(1, bisect_right(counts, False, key=partial(too_large, resident=resident)))


def _largest_pass(windows: Windows, count: int) -> tuple[int, int]:
    """Tokens of context of each window, and targets of all, in a pass with the first so many."""
    context = windows.size - 1  # the last token of a window is a target and nothing more
    return context, context + (count - 1) * windows.stride


def score_windows(
    model: Runner, ids: TokenIds, windows: Windows, together: int
) -> Iterator[Floats]:
    """Score a text, some windows in each pass over the weights.

    Args:
        ids: (T,) int64.
        windows: over so many tokens.
        together: windows in a pass.

    Yields:
        For each pass the natural logarithms of its scored tokens' probabilities, float32.

    Raises:
        NumpyBloomError: there is too little memory, or the weights are damaged or cannot be read.
    """
    context, targets = _largest_pass(windows, together)
    caches = model.prepare(Needs.of_one_pass([context] * together, target_rows=targets))
    rest = iter(windows)
    while group := list(islice(rest, together)):
        log_probabilities = model.score(
            [ids[window.begin : window.end - 1] for window in group],
            caches[: len(group)],
            [ids[window.end - window.scored : window.end] for window in group],
        )
        check_finite(log_probabilities, model)
        yield log_probabilities


@dataclass(frozen=True)
class EvaluationStats:
    """What an evaluation took.

    Attributes:
        passes: passes over the weights.
        seconds: of all passes.
        tokens_per_second: tokens that were scored.
        weight_bytes_pinned: weights read into memory before the first pass.
        weight_bytes_read: weights read from disk by all passes together.
        peak_memory_bytes: largest resident memory of the process so far.
    """

    passes: int
    seconds: float
    tokens_per_second: float
    weight_bytes_pinned: int
    weight_bytes_read: int
    peak_memory_bytes: int


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    Attributes:
        perplexity: e to the power of `negative_log_likelihood`.
        negative_log_likelihood: mean of the scored tokens, in nats.
        bits_per_byte: of the UTF-8 bytes that the scored tokens stand for.
        tokens, tokens_scored: of the text; all but the first.
        bytes_scored: UTF-8 bytes of those.
        windows: how many.
        window: tokens of each, at most.
        stride: tokens between their beginnings.
        stats: what it took.
    """

    perplexity: float
    negative_log_likelihood: float
    bits_per_byte: float
    tokens: int
    tokens_scored: int
    bytes_scored: int
    windows: int
    window: int
    stride: int
    stats: EvaluationStats


def evaluate(model: Runner, text: Text, windows: Windows, together: int) -> Evaluation:
    """Score a text.

    Args:
        windows: over its tokens.
        together: windows in a pass, see `windows_per_pass`.

    Raises:
        NumpyBloomError: there is too little memory, or the weights are damaged or cannot be read.
    """
    start, read = time.perf_counter(), model.bytes_read
    passes, total = 0, 0.0
    for log_probabilities in score_windows(model, text.ids, windows, together):
        total -= float(log_probabilities.sum(dtype=np.float64))
        passes += 1
    seconds = time.perf_counter() - start
    scored = len(text.ids) - 1
    mean = total / scored
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(mean))
    return Evaluation(
        perplexity=perplexity,
        negative_log_likelihood=mean,
        bits_per_byte=total / math.log(2) / text.scored_bytes,
        tokens=len(text.ids),
        tokens_scored=scored,
        bytes_scored=text.scored_bytes,
        windows=len(windows),
        window=windows.size,
        stride=windows.stride,
        stats=EvaluationStats(
            passes=passes,
            seconds=seconds,
            tokens_per_second=scored / seconds,
            weight_bytes_pinned=model.bytes_pinned,
            weight_bytes_read=model.bytes_read - read,
            peak_memory_bytes=peak_memory_bytes(),
        ),
    )
