"""A model that is ready to run: its config and its weights, one pass at a time."""

from collections.abc import Sequence

import numpy as np

from numpy_bloom.model.cache import KVCache
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.model.forward import TokenIds, forward, unembed
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
    """

    def __init__(self, config: BloomConfig, store: WeightStore) -> None:
        self.config = config
        self.store = store
        self.weights = bloom_weights(store, config)
        self.passes = 0

    def cache(self, capacity: int) -> KVCache:
        """An empty cache for one sequence of up to this many tokens."""
        return KVCache(self.config, capacity)

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
        x = forward(sequences, caches, self.weights, self.config, tap)  # (T, H)
        if not all_positions:
            x = x[np.cumsum([len(ids) for ids in sequences]) - 1]  # (B, H)
        self.passes += 1
        return unembed(x, self.weights, self.config, tap)
