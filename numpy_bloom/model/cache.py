"""The key-value cache: what attention keeps of earlier tokens."""

from collections.abc import Iterator, Sequence

import numpy as np

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.weights.dtypes import Floats


class KVCache:
    """Keys and values of one sequence in every block.

    The model appends; `length` moves only when a pass is complete, so an interrupted pass leaves
    the cache as it was, and setting `length` back forgets the tokens after it.

    Attributes:
        capacity: tokens that fit.
        length: tokens that are in.
    """

    def __init__(self, config: BloomConfig, capacity: int) -> None:
        heads, size = config.num_attention_heads, config.head_size
        self._arrays = np.empty(
            (config.num_hidden_layers, 2, heads, capacity, size), dtype=np.float32
        )
        self.capacity = capacity
        self.length = 0

    @staticmethod
    def nbytes(config: BloomConfig, capacity: int) -> int:
        """Memory of a cache for this many tokens: 8 · L · H bytes each."""
        return 8 * config.num_hidden_layers * config.hidden_size * capacity

    def append(self, block: int, k: Floats, v: Floats) -> tuple[Floats, Floats]:
        """Store the keys and values (T, N, D) of new tokens behind those of one block.

        Returns:
            Views of all keys and all values of the block, (N, S, D) each.

        Raises:
            NumpyBloomError: the capacity is exceeded.
        """
        end = self.length + len(k)
        if end > self.capacity:
            raise NumpyBloomError(
                f"the cache holds {self.capacity} tokens, {end} were given; make it larger"
            )
        keys, values = self._arrays[block]  # (N, capacity, D) each
        keys[:, self.length : end] = k.swapaxes(0, 1)
        values[:, self.length : end] = v.swapaxes(0, 1)
        return keys[:, :end], values[:, :end]


class PackedCache:
    """The caches of all sequences that are packed into one pass.

    Args:
        lengths: for each sequence, how many of the pass's T tokens are its own.
        caches: for each sequence, its cache.
    """

    def __init__(self, lengths: Sequence[int], caches: Sequence[KVCache]) -> None:
        self._lengths = lengths
        self._caches = caches

    def block(self, block: int) -> "BlockCache":
        """One block's share, for its attention."""
        return BlockCache(block, self._lengths, self._caches)

    def advance(self) -> None:
        """All blocks have appended: the tokens of this pass now count."""
        for length, cache in zip(self._lengths, self._caches, strict=True):
            cache.length += length


class BlockCache:
    """One block's share of the caches of all sequences that are packed into a pass."""

    def __init__(self, block: int, lengths: Sequence[int], caches: Sequence[KVCache]) -> None:
        self._block = block
        self._lengths = lengths
        self._caches = caches

    def append(self, k: Floats, v: Floats) -> Iterator[tuple[int, int, Floats, Floats]]:
        """Store the packed keys and values (T, N, D) of this pass, sequence by sequence.

        Yields:
            For each sequence its first row in the pass, how many are its own, and all its keys
            and values so far, (N, S, D) each.
        """
        first = 0
        for count, cache in zip(self._lengths, self._caches, strict=True):
            rows = slice(first, first + count)
            yield first, count, *cache.append(self._block, k[rows], v[rows])
            first += count
