"""The loop around the model: one pass for the prompt, then one for each token."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from numpy_bloom.errors import NumpyBloomError, OptionError
from numpy_bloom.generation.sampling import SamplingOptions, draw, next_token_distribution
from numpy_bloom.generation.text import TextStream
from numpy_bloom.model.forward import TokenIds
from numpy_bloom.model.model import Model
from numpy_bloom.weights.dtypes import Floats


@dataclass(frozen=True)
class Token:
    """One generated token.

    Attributes:
        id: its number.
        logprob: natural logarithm of its probability under the model itself, before any option
            changes the distribution.
        text: the text that is certain with it; may be empty, or belong to earlier tokens.
    """

    id: int
    logprob: float
    text: str


@dataclass(frozen=True)
class Stats:
    """What a generation took.

    Attributes:
        passes: passes over the weights.
        prefill_seconds: up to the first new token.
        decode_seconds: the rest.
        tokens_per_second: of the rest; 0 if there was none.
        weight_bytes_pinned: weights read into memory before the first pass.
        weight_bytes_read: weights read from disk by all passes together.
        peak_memory_bytes: largest resident memory of the process so far.
    """

    passes: int
    prefill_seconds: float
    decode_seconds: float
    tokens_per_second: float
    weight_bytes_pinned: int
    weight_bytes_read: int
    peak_memory_bytes: int


class Generation(Iterator[Token]):
    """The new tokens of one prompt, computed as they are asked for.

    Attributes:
        prompt_token_ids: the prompt.
        token_ids: the new tokens so far; an end-of-text token is among them.
        text: the text of them that is certain so far; all of it when the loop has ended.
        finish_reason: why it ended: "length", "eos" or "stop"; None before.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer | None,
        prompt_token_ids: TokenIds,
        *,
        memory: int,
        max_new_tokens: int,
        sampling: SamplingOptions,
        stop: Sequence[str],
    ) -> None:
        if max_new_tokens < 1 or max_new_tokens % 1:
            raise OptionError(
                f"max_new_tokens is {max_new_tokens}; expected a value in [1, inf), whole"
            )
        # The last token is never fed back, so it needs no place in the cache.
        capacity = len(prompt_token_ids) + max_new_tokens - 1
        model.prepare(
            memory, cache_tokens=capacity, pass_tokens=len(prompt_token_ids), logit_rows=1
        )
        self._cache = model.cache(capacity)
        self.prompt_token_ids = prompt_token_ids.tolist()
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self._model = model
        self._stream = TextStream(tokenizer, stop)
        self._sampling = sampling
        self._max_new_tokens = max_new_tokens
        self._times = [time.perf_counter()]  # of the start and of each token
        self._counts = model.passes, model.store.stream.bytes_read
        self._random = np.random.default_rng(sampling.seed)
        self._new = prompt_token_ids  # tokens that the next pass takes in

    def __next__(self) -> Token:
        if self.finish_reason is not None:
            raise StopIteration
        logits = self._model.run([self._new], [self._cache])[0]  # (V,)
        if not np.isfinite(logits).all():
            raise NumpyBloomError(
                "the model's output is not finite; its weights may be damaged: "
                "convert the checkpoint again"
            )
        token_id = self._choose(logits)
        self._new = np.array([token_id], dtype=np.int64)
        self._times.append(time.perf_counter())
        self.token_ids.append(token_id)
        text = self._read(token_id)
        self.text += text
        return Token(token_id, _logprob(logits, token_id), text)

    def _read(self, token_id: int) -> str:
        """The text that is certain with one more token; notices when it is the last."""
        text = ""
        if token_id in self._model.config.eos_token_ids:
            self.finish_reason = "eos"
        else:
            text = self._stream.step(token_id)
            if len(self.token_ids) == self._max_new_tokens:
                self.finish_reason = "length"
        if self.finish_reason is not None:
            text += self._stream.finish()
        if self._stream.stopped:
            self.finish_reason = "stop"
        return text

    def _choose(self, logits: Floats) -> int:
        ids = self.prompt_token_ids + self.token_ids
        return draw(next_token_distribution(logits, ids, self._sampling), self._random)

    @property
    def stats(self) -> Stats:
        """What it took so far."""
        passes, bytes_read = self._counts
        prefill = self._times[1] - self._times[0] if self.token_ids else 0.0
        decode = self._times[-1] - self._times[1] if self.token_ids else 0.0
        return Stats(
            passes=self._model.passes - passes,
            prefill_seconds=prefill,
            decode_seconds=decode,
            tokens_per_second=(len(self.token_ids) - 1) / decode if decode else 0.0,
            weight_bytes_pinned=self._model.store.stream.bytes_pinned,
            weight_bytes_read=self._model.store.stream.bytes_read - bytes_read,
            peak_memory_bytes=peak_memory_bytes(),
        )


def _logprob(logits: Floats, token_id: int) -> float:
    """Logarithm of the softmax at one token."""
    top = logits.max()
    return float(logits[token_id] - top - np.log(np.exp(logits - top).sum()))


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far.

    Linux tells it of this program alone; `getrusage`, elsewhere, in kilobytes or (macOS) bytes.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # noqa: PLC0415  (not on every platform)

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
