"""Several texts in each pass over the weights."""

import threading
import time
from collections import deque
from collections.abc import Iterable

import numpy as np

from numpy_bloom.generation.continuation import Continuation, PassStats, Token
from numpy_bloom.model.passes import Tap, no_tap
from numpy_bloom.running.memory import Needs
from numpy_bloom.running.runner import Runner, SequenceCache, check_finite

PASS_TOKENS = 512
"""A pass takes in no further prompt once it has so many tokens."""


class Batch:
    """Texts that are continued together.

    Each step is one pass. Texts that have ended leave, and those that wait join as soon as the
    memory for their keys and values is there: as many as fit, if weights are read from disk in
    every pass; else as many as leave all weights in memory.

    Args:
        model: continues them.
        texts: join in this order.

    Attributes:
        tap: sees every stage of every pass.
    """

    def __init__(self, model: Runner, texts: Iterable[Continuation]) -> None:
        self.tap: Tap = no_tap
        self._model = model
        self._waiting = deque(texts)
        self._active: list[Continuation] = []
        self._one_at_a_time = threading.Lock()
        self._admit()

    def next_token(self, text: Continuation) -> Token | None:
        """The next token of one of the texts, or None if it has ended.

        It takes passes to get there if there is none yet. Threads wait for each other.

        Raises:
            NumpyBloomError: weights are damaged or cannot be read, the memory does not suffice, or
                a text cannot be written to its file, which the next pass does again.
        """
        with self._one_at_a_time:
            while not text.is_ready:
                if text.finish_reason is not None:
                    return None
                self._step()
            return text.take_token()

    def _step(self) -> None:
        """Make one pass."""
        self._dismiss()
        self._admit()
        active = self._active
        start, read = time.perf_counter(), self._model.bytes_read
        caches = [_cache_of(text) for text in active]
        lengths = [cache.length for cache in caches]
        try:
            feeds = [text.feed() for text in active]
            rows = [text.rows for text in active]
            logits = self._model.run(feeds, caches, last=rows, tap=self.tap)
            check_finite(logits, self._model)
            for text, part in zip(active, np.split(logits, np.cumsum(rows)[:-1]), strict=True):
                text.take(part)
        except BaseException:  # Ctrl-C for one: the pass can be repeated
            for cache, length in zip(caches, lengths, strict=True):
                cache.length = min(cache.length, length)
            raise
        took = PassStats.since(start, read, self._model)
        for text in active:
            text.passes.append(took)
        for text in active:
            text.save()
        self._dismiss()

    def _dismiss(self) -> None:
        """Let texts leave that have ended."""
        for text in self._active:
            if text.finish_reason is not None:
                text.end()
        self._active = [text for text in self._active if text.finish_reason is None]

    def _admit(self) -> None:
        """Let waiting texts join while there is room."""
        tokens = sum(text.uncached_tokens + text.most_guesses for text in self._active)
        while self._waiting:
            text = self._waiting[0]
            text.end()  # it holds something if Ctrl-C came while it joined
            if text.source is not None and text.source.length < text.known_tokens:
                return  # in the next pass it has them
            if self._active and tokens >= PASS_TOKENS:
                return
            ids = len(text.prompt_token_ids) + len(text.token_ids)
            tokens += ids - text.known_tokens + text.most_guesses
            # The first pass adds a token, and then there are guesses.
            if self._active and not text.drafter.has_room(ids + 1, text.cache_tokens):
                return
            text.drafter.begin(ids + 1, text.cache_tokens)
            needs = Needs(
                [text.cache_tokens],
                pass_tokens=tokens,
                logit_rows=sum(one.most_rows for one in [*self._active, text]),
                longest=max((one.cache_tokens for one in self._active), default=0),
                draft=text.drafter.model,
            )
            if self._active and not self._model.has_room(needs):
                text.end()
                return
            (cache,) = self._model.prepare(needs)
            text.begin(cache)
            self._active.append(self._waiting.popleft())


def _cache_of(text: Continuation) -> SequenceCache:
    assert text.cache is not None
    return text.cache
