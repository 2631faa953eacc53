"""A model that is ready to run: its config and its weights, one pass at a time."""

import math
from collections.abc import Sequence
from weakref import WeakSet

import numpy as np

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.cache import KVCache
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.model.forward import TokenIds, forward, unembed
from numpy_bloom.model.memory import working_bytes
from numpy_bloom.model.tap import Tap, no_tap
from numpy_bloom.model.weights import bloom_weights
from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.store import WeightStore


class Model:
    """Config and weights, and the number of passes made over them.

    Attributes:
        config: the sizes.
        store: where the weights lie.
        weights: all parameters, as a tree.
        passes: how often the weights were gone through.
        memory_for_all: what the run prepared last would need to read nothing from disk.
    """

    def __init__(self, config: BloomConfig, store: WeightStore) -> None:
        self.config = config
        self.store = store
        self.weights = bloom_weights(store, config)
        self.passes = 0
        self.memory_for_all = 0
        self._caches: WeakSet[KVCache] = WeakSet()  # those that still take memory

    def prepare(self, memory: int, *, cache_tokens: int, pass_tokens: int, logit_rows: int) -> None:
        """Pin as many weights as `memory` bytes hold beside all else that a run needs.

        Args:
            cache_tokens: capacity of the caches that the run will make.
            pass_tokens: T of its largest pass.
            logit_rows: rows of logits of that pass.

        Raises:
            NumpyBloomError: the run does not fit; the message tells the least that it needs.
        """
        config, store = self.config, self.store
        held = KVCache.nbytes(config, cache_tokens + sum(cache.capacity for cache in self._caches))
        working = working_bytes(config, pass_tokens, cache_tokens, logit_rows, store.team.threads)
        needed = store.vector_bytes + held + working
        self.memory_for_all = needed + store.stream.nbytes
        least = needed + min(store.stream.nbytes, store.stream.buffer_bytes)
        if memory < least:
            raise NumpyBloomError(
                f"this run needs at least {_megabytes(least)} of memory, {_megabytes(memory)} are "
                f"given: keys and values of {cache_tokens} tokens take {_megabytes(held)}, "
                f"activations {_megabytes(working)}; give more memory, or fewer tokens"
            )
        streamed = self.memory_for_all > memory
        store.stream.pin(memory - needed - (store.stream.buffer_bytes if streamed else 0))

    def cache(self, capacity: int) -> KVCache:
        """An empty cache for one sequence of up to this many tokens."""
        cache = KVCache(self.config, capacity)
        self._caches.add(cache)
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
            sequences: for each sequence the ids of its new tokens, 1-D, not empty.
            caches: for each sequence its cache.
            all_positions: whether every token meets the vocabulary or only the last of each
                sequence.
            tap: sees every stage.

        Returns:
            Logits (B, V), or (T, V) for all positions, float32.
        """
        # What damaged weights bring about is seen in the logits, not in warnings on the way.
        with self.store.computing(), np.errstate(invalid="ignore", over="ignore"):
            x = forward(sequences, caches, self.weights, self.config, tap)  # (T, H)
            if not all_positions:
                x = x[np.cumsum([len(ids) for ids in sequences]) - 1]  # (B, H)
            self.passes += 1
            return unembed(x, self.weights, self.config, tap)


def _megabytes(nbytes: int) -> str:
    """Rounded up, so that what is called enough is enough."""
    return f"{math.ceil(nbytes / 1e5) / 10:,.1f} MB"
