"""A model that is ready to run: its config and its weights, one pass at a time."""

import math
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.alibi import alibi_slopes
from numpy_bloom.model.cache import Cache, KVCache, OnePassCache
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.model.forward import (
    TokenIds,
    embed,
    log_probabilities,
    run_blocks,
    unembed,
)
from numpy_bloom.model.memory import logit_bytes, pass_bytes, score_bytes
from numpy_bloom.model.parameters import bloom_parameters
from numpy_bloom.model.passes import Pass, Tap, no_tap
from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.store import WeightStore


class Model:
    """Config and weights, and the memory that they and all runs share.

    Passes of several threads wait for each other. A model that nobody holds any more closes
    itself.

    Attributes:
        config: the sizes.
        store: where the weights lie.
        stream: the weights on their way through memory.
        parameters: all of them, as a tree.
        memory: bytes that everything together may take.
        memory_for_all: what the run prepared last would need to read nothing from disk.
    """

    def __init__(self, config: BloomConfig, store: WeightStore, memory: int) -> None:
        self.config = config
        self.store = store
        self.stream = store.stream
        self.parameters = bloom_parameters(store, config)
        self.memory = memory
        self.memory_for_all = 0
        # The runs that are not over: the caches of each, bytes that its largest pass needs, and
        # the draft model that takes its share of the memory meanwhile.
        self._runs: weakref.WeakKeyDictionary[Cache, tuple[int, Model | None]] = (
            weakref.WeakKeyDictionary()
        )
        self._one_at_a_time = threading.Lock()
        self.close = weakref.finalize(self, store.close)

    def prepare(
        self,
        *,
        cache_tokens: Sequence[int],
        pass_tokens: int,
        logit_rows: int,
        longest: int = 0,
        draft: "Model | None" = None,
    ) -> list[KVCache]:
        """Make room for a run of many passes: pin as many weights as fit beside all else.

        Args:
            cache_tokens: for each sequence the tokens that its cache is to hold.
            pass_tokens: T of the largest pass, those of other sequences included.
            logit_rows: rows of V that it takes, of logits and of guesses.
            longest: tokens of the longest of the other sequences.
            draft: another model, of whose memory the run makes use.

        Returns:
            For each sequence its empty cache. The run is over when nobody holds any of them.

        Raises:
            NumpyBloomError: the run does not fit; the message tells the least that it needs.
        """
        longest = max(longest, *cache_tokens)
        working = self.working_bytes(pass_tokens, longest, logit_rows=logit_rows)
        with self._one_at_a_time:
            self._make_room(sum(cache_tokens), working, draft)
            caches = [KVCache(self.config, tokens) for tokens in cache_tokens]
            self._runs.update(dict.fromkeys(caches, (working, draft)))
        return caches

    def prepare_one_pass(
        self,
        *,
        lengths: Sequence[int],
        logit_rows: int = 0,
        target_rows: int = 0,
        beside: int = 0,
    ) -> list[OnePassCache]:
        """Make room for a pass that sequences begin and end with, or for many such passes.

        Args:
            lengths: for each sequence of the largest pass its tokens.
            logit_rows: rows of logits of that pass, if it is for `run`.
            target_rows: targets of that pass, if it is for `score`.
            beside: bytes that an onlooker keeps.

        Returns:
            For each sequence what stands in place of a cache. The run is over when nobody holds any
            of them.

        Raises:
            NumpyBloomError: the pass does not fit; the message tells the least that it needs.
        """
        working = beside + self.working_bytes(
            sum(lengths), max(lengths), logit_rows=logit_rows, target_rows=target_rows
        )
        with self._one_at_a_time:
            self._make_room(0, working)
            caches = [OnePassCache() for _ in lengths]
            self._runs.update(dict.fromkeys(caches, (working, None)))
        return caches

    def working_bytes(
        self, tokens: int, longest: int, *, logit_rows: int = 0, target_rows: int = 0
    ) -> int:
        """What a pass takes beside weights and caches, at most.

        Args:
            tokens: T.
            longest: S of the longest sequence at its end.
            logit_rows: rows of logits, of `run`.
            target_rows: targets, of `score`.
        """
        config, threads = self.config, self.store.team.threads
        nbytes = pass_bytes(config, tokens, longest, threads, self.store.scratch_bytes(tokens))
        if logit_rows:
            nbytes += logit_bytes(config, logit_rows)
        if target_rows:
            tile_rows = self.parameters.lm_head.format.tile_rows
            nbytes += score_bytes(config, target_rows, threads, tile_rows)
        return nbytes

    def has_room(
        self,
        *,
        cache_tokens: Sequence[int],
        pass_tokens: int,
        logit_rows: int,
        longest: int = 0,
        draft: "Model | None" = None,
        resident: bool = False,
    ) -> bool:
        """Whether `prepare` would succeed and, if all weights are in memory, leave them there.

        Args:
            resident: whether it must bring all weights there.

        The others are those of `prepare`.
        """
        longest = max(longest, *cache_tokens)
        working = self.working_bytes(pass_tokens, longest, logit_rows=logit_rows)
        needed = self._needed(sum(cache_tokens), working, draft)
        resident = resident or self.stream.bytes_pinned == self.stream.nbytes
        return needed + self._least_weights(resident=resident) <= self.memory

    @property
    def resident_bytes(self) -> int:
        """What the runs that are not over need, with all weights in memory; without drafts."""
        return self._held_bytes(0, 0) + self.stream.nbytes

    def _needed(self, cache_tokens: int, working: int, draft: "Model | None" = None) -> int:
        """Bytes of all but weights, with the runs that are not over, a new one, and drafts."""
        drafts = {draft, *(draft for _, draft in dict(self._runs).values())} - {None, self}
        elsewhere = sum(draft.resident_bytes for draft in drafts if draft is not None)
        return self._held_bytes(cache_tokens, working) + elsewhere

    def _held_bytes(self, cache_tokens: int, working: int) -> int:
        runs = dict(self._runs)
        cached = cache_tokens + sum(cache.capacity for cache in runs)
        held = KVCache.nbytes(self.config, cached)
        return self.store.vector_bytes + held + max(working, *(run for run, _ in runs.values()), 0)

    def _least_weights(self, *, resident: bool) -> int:
        """Bytes that weights take at least: all there are, or the buffers they pass through."""
        stream = self.stream
        return stream.nbytes if resident else min(stream.nbytes, stream.buffer_bytes)

    def _make_room(self, cache_tokens: int, working: int, draft: "Model | None" = None) -> None:
        """Pin as many weights as fit beside the runs that are not over and a new one.

        Args:
            cache_tokens: that its caches are to hold together.
            working: bytes that its largest pass needs.
            draft: the model that takes its share of the memory.
        """
        stream = self.stream
        needed = self._needed(cache_tokens, working, draft)
        least = needed + self._least_weights(resident=False)
        if self.memory < least:
            held = sum(cache.capacity for cache in dict(self._runs)) + cache_tokens
            raise NumpyBloomError(
                f"this run needs at least {_megabytes(least)} of memory, "
                f"{_megabytes(self.memory)} may be used: keys and values of {held} tokens take "
                f"{_megabytes(KVCache.nbytes(self.config, held))}, activations "
                f"{_megabytes(working)}; give more memory, or fewer tokens"
            )
        self.memory_for_all = needed + stream.nbytes
        streamed = self.memory_for_all > self.memory
        stream.pin(self.memory - needed - (stream.buffer_bytes if streamed else 0))

    def run(
        self,
        sequences: Sequence[TokenIds],
        caches: Sequence[Cache],
        *,
        last: Sequence[int] | None = None,
        tap: Tap = no_tap,
    ) -> Floats:
        """One pass: new tokens of some sequences in, logits out, caches grown.

        Args:
            sequences: for each sequence the ids of its new tokens, 1-D int64, not empty.
            caches: for each sequence its cache, which holds the tokens before them.
            last: for each sequence how many of its last new tokens meet the vocabulary. Default:
                one.
            tap: sees every stage.

        Returns:
            Logits float32, a row for each token that meets the vocabulary: (B, V) by default.

        Raises:
            NumpyBloomError: weights cannot be read, or a cache is full.
        """

        def head(x: Floats, p: Pass) -> Floats:
            return unembed(x, self.parameters, p)

        return self._run(
            sequences, caches, [1] * len(sequences) if last is None else last, head, tap
        )

    def score(
        self,
        sequences: Sequence[TokenIds],
        caches: Sequence[Cache],
        targets: Sequence[TokenIds],
    ) -> Floats:
        """One pass: new tokens of some sequences in, log-probabilities of what follows them out.

        Args:
            sequences, caches: as in `run`.
            targets: for each sequence the ids of the tokens after its last new ones, 1-D int64, at
                most as many as there are new ones: the last target follows the last new token.

        Returns:
            Natural logarithms of the targets' probabilities, float32, in one array.

        Raises:
            NumpyBloomError: weights cannot be read, or a cache is full.
        """

        def head(x: Floats, p: Pass) -> Floats:
            return log_probabilities(x, np.concatenate(targets), self.parameters, p)

        return self._run(sequences, caches, [len(ids) for ids in targets], head)

    def _run(
        self,
        sequences: Sequence[TokenIds],
        caches: Sequence[Cache],
        last: Sequence[int],
        head: Callable[[Floats, Pass], Floats],
        tap: Tap = no_tap,
    ) -> Floats:
        """One pass; what `head` makes of the output of the last block for each sequence's last
        tokens."""
        lengths = [len(ids) for ids in sequences]
        slopes = alibi_slopes(self.config.num_attention_heads)
        p = Pass(self.config, lengths, caches, slopes, self.store.team, tap)
        w = self.parameters
        with self.computing():
            x = run_blocks(embed(np.concatenate(sequences), w, p), range(len(w.blocks)), w, p)
            x = x[_last_rows(lengths, last)]
            result = head(x, p)
            p.advance()
        return result

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within it the weights can be multiplied by, by one caller at a time."""
        # What damaged weights bring about is seen in the logits, not in warnings on the way.
        with (
            self._one_at_a_time,
            self.store.computing(),
            np.errstate(invalid="ignore", over="ignore"),
        ):
            try:
                yield
            finally:
                self.store.release()  # a pass that was cut short has left chunks in use


def _last_rows(lengths: Sequence[int], last: Sequence[int]) -> npt.NDArray[np.int64]:
    """Places, among the T tokens of a pass, of the last tokens of each sequence."""
    ends = np.cumsum(lengths)
    rows = zip(ends, lengths, last, strict=True)
    assert all(0 < count <= length for _, length, count in rows)
    return np.concatenate(
        [np.arange(end - count, end) for end, count in zip(ends, last, strict=True)]
    )


def check_finite(output: Floats) -> None:
    """Check what a pass computed.

    Raises:
        NumpyBloomError: NaN or inf is among it.
    """
    if not np.isfinite(output).all():
        raise NumpyBloomError(
            "the model's output is not finite; its weights may be damaged: "
            "convert the checkpoint again"
        )


def _megabytes(nbytes: int) -> str:
    """Rounded up, so that what is called enough is enough."""
    return f"{math.ceil(nbytes / 1e5) / 10:,.1f} MB"
