"""The loop around the model: one pass for the prompt, then one for each token."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from numpy_bloom.errors import check_whole
from numpy_bloom.generation.sampling import SamplingOptions, draw, next_token_distribution
from numpy_bloom.generation.text import TextStream
from numpy_bloom.model.forward import TokenIds
from numpy_bloom.model.model import Model, check_finite
from numpy_bloom.weights.budget import peak_memory_bytes
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
        prefill_seconds: of the pass over the prompt, up to the first new token.
        decode_seconds: of all passes after it.
        tokens_per_second: of those; 0 if there was none.
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
        max_new_tokens: int,
        sampling: SamplingOptions,
        stop: Sequence[str],
    ) -> None:
        check_whole("max_new_tokens", max_new_tokens, 1)
        self.prompt_token_ids: list[int] = prompt_token_ids.tolist()
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self._model = model
        self._stream = TextStream(tokenizer, stop)
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)
        self._max_new_tokens = max_new_tokens
        tokens = len(prompt_token_ids)
        # The last new token is never fed back, so it needs no place in the cache.
        (self._cache,) = model.prepare(
            cache_tokens=[tokens + max_new_tokens - 1], pass_tokens=tokens, logit_rows=1
        )
        self._new = prompt_token_ids  # what the next pass takes in
        self._seconds: list[float] = []  # of each pass
        self._bytes_read = 0

    def __next__(self) -> Token:
        if self.finish_reason is not None:
            raise StopIteration
        start, length, read = time.perf_counter(), self._cache.length, self._model.stream.bytes_read
        try:
            logits = self._model.run([self._new], [self._cache])[0]  # (V,)
            token_id = self._choose(logits)
        except BaseException:  # Ctrl-C for one: the pass can be repeated
            self._cache.length = length
            raise
        self._new = np.array([token_id], dtype=np.int64)
        self._bytes_read += self._model.stream.bytes_read - read
        self._seconds.append(time.perf_counter() - start)
        self.token_ids.append(token_id)
        text = self._read(token_id)
        self.text += text
        return Token(token_id, _logprob(logits, token_id), text)

    def _choose(self, logits: Floats) -> int:
        check_finite(logits)
        ids = self.prompt_token_ids + self.token_ids
        return draw(next_token_distribution(logits, ids, self._sampling), self._random)

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

    @property
    def stats(self) -> Stats:
        """What it took so far."""
        prefill, decode = sum(self._seconds[:1]), sum(self._seconds[1:])
        return Stats(
            passes=len(self._seconds),
            prefill_seconds=prefill,
            decode_seconds=decode,
            tokens_per_second=len(self._seconds[1:]) / decode if decode else 0.0,
            weight_bytes_pinned=self._model.stream.bytes_pinned,
            weight_bytes_read=self._bytes_read,
            peak_memory_bytes=peak_memory_bytes(),
        )


def _logprob(logits: Floats, token_id: int) -> float:
    """Logarithm of the softmax at one token."""
    top = logits.max()
    return float(logits[token_id] - top - np.log(np.exp(logits - top).sum()))
