"""A model that is ready to run: its config and its weights, one pass at a time."""

import math
import threading
import weakref
from collections.abc import Sequence

import numpy as np

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.alibi import alibi_slopes
from numpy_bloom.model.cache import KVCache
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.model.forward import TokenIds, embed, run_blocks, unembed
from numpy_bloom.model.memory import working_bytes
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
        # The runs that are not over: the cache of each, and what its largest pass needs.
        self._runs: weakref.WeakKeyDictionary[KVCache, int] = weakref.WeakKeyDictionary()
        self._one_at_a_time = threading.Lock()
        self.close = weakref.finalize(self, store.close)

    def prepare(self, *, cache_tokens: int, pass_tokens: int, logit_rows: int) -> KVCache:
        """Make room for a run of one sequence: pin as many weights as fit beside all else.

        Args:
            cache_tokens: tokens that its cache is to hold.
            pass_tokens: T of its largest pass.
            logit_rows: rows of logits of that pass.

        Returns:
            The empty cache. The run is over when nobody holds it any more.

        Raises:
            NumpyBloomError: the run does not fit; the message tells the least that it needs.
        """
        config, store, stream = self.config, self.store, self.stream
        threads = store.team.threads
        working = working_bytes(config, pass_tokens, cache_tokens, logit_rows, threads)
        with self._one_at_a_time:
            runs = dict(self._runs)
            cached = cache_tokens + sum(cache.capacity for cache in runs)
            held = KVCache.nbytes(config, cached)
            needed = store.vector_bytes + held + max(working, *runs.values(), 0)
            least = needed + min(stream.nbytes, stream.buffer_bytes)
            if self.memory < least:
                raise NumpyBloomError(
                    f"this run needs at least {_megabytes(least)} of memory, "
                    f"{_megabytes(self.memory)} may be used: keys and values of {cached} tokens "
                    f"take {_megabytes(held)}, activations {_megabytes(working)}; give more "
                    "memory, or fewer tokens"
                )
            self.memory_for_all = needed + stream.nbytes
            streamed = self.memory_for_all > self.memory
            stream.pin(self.memory - needed - (stream.buffer_bytes if streamed else 0))
            cache = KVCache(config, cache_tokens)
            self._runs[cache] = working
        return cache

    def run(
        self,
        sequences: Sequence[TokenIds],
        caches: Sequence[KVCache],
        *,
        all_positions: bool = False,
        tap: Tap = no_tap,
    ) -> Floats:
        """One pass: new tokens of some sequences in, logits out, caches grown.

        Args:
            sequences: for each sequence the ids of its new tokens, 1-D int64, not empty.
            caches: for each sequence its cache, which holds the tokens before them.
            all_positions: whether every token meets the vocabulary or only the last of each
                sequence.
            tap: sees every stage.

        Returns:
            Logits (B, V), or (T, V) for all positions, float32.

        Raises:
            NumpyBloomError: weights cannot be read, or a cache is full.
        """
        lengths = [len(ids) for ids in sequences]
        slopes = alibi_slopes(self.config.num_attention_heads)
        p = Pass(self.config, lengths, caches, slopes, self.store.team, tap)
        w = self.parameters
        # What damaged weights bring about is seen in the logits, not in warnings on the way.
        with (
            self._one_at_a_time,
            self.store.computing(),
            np.errstate(invalid="ignore", over="ignore"),
        ):
            x = run_blocks(embed(np.concatenate(sequences), w, p), range(len(w.blocks)), w, p)
            if not all_positions:
                x = x[np.cumsum(lengths) - 1]  # (B, H)
            logits = unembed(x, w, p)
            p.advance()
        return logits


def _megabytes(nbytes: int) -> str:
    """Rounded up, so that what is called enough is enough."""
    return f"{math.ceil(nbytes / 1e5) / 10:,.1f} MB"
