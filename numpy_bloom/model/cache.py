"""The key-value cache: what attention keeps of earlier tokens."""

from typing import Protocol

import numpy as np

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.weights.dtypes import Floats


class Cache(Protocol):
    """What a pass asks of the cache of a sequence.

    Attributes:
        capacity: tokens whose keys and values it keeps when a pass is over.
        length: tokens that are in from earlier passes.
    """

    capacity: int
    length: int

    def append(self, block: int, k: Floats, v: Floats) -> tuple[Floats, Floats]:
        """Take in the keys and values (T, N, D) of new tokens in one block.

        Returns:
            All keys and all values of the block, (N, S, D) each.
        """

    def advance(self, tokens: int) -> None:
        """So many tokens have been appended in every block: from now on they are of the past."""


class KVCache:
    """Keys and values of one sequence in every block.

    The model appends; `length` moves only when a pass is complete, so an interrupted pass leaves
    the cache as it was, and setting `length` back forgets the tokens after it.

    Args:
        config: the sizes.
        capacity: tokens that fit.
        blocks: those whose keys and values it keeps. Default: all.

    Attributes:
        capacity: tokens that fit.
        length: tokens that are in.
    """

    def __init__(self, config: BloomConfig, capacity: int, blocks: range | None = None) -> None:
        blocks = range(config.num_hidden_layers) if blocks is None else blocks
        heads, size = config.num_attention_heads, config.head_size
        self._arrays = np.empty((len(blocks), 2, heads, capacity, size), dtype=np.float32)
        self._first = blocks.start
        self.capacity = capacity
        self.length = 0

    @staticmethod
    def nbytes(config: BloomConfig, capacity: int, blocks: range | None = None) -> int:
        """Memory of a cache for this many tokens: 8 · L · H bytes each, L being its blocks."""
        count = config.num_hidden_layers if blocks is None else len(blocks)
        return 8 * count * config.hidden_size * capacity

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
        keys, values = self._arrays[block - self._first]  # (N, capacity, D) each
        keys[:, self.length : end] = k.swapaxes(0, 1)
        values[:, self.length : end] = v.swapaxes(0, 1)
        return keys[:, :end], values[:, :end]

    def advance(self, tokens: int) -> None:
        """The tokens that were appended are of the past."""
        self.length += tokens

    @property
    def token_shape(self) -> tuple[int, ...]:
        """Shape of what is kept of one token: (L, 2, N, D)."""
        blocks, two, heads, _, size = self._arrays.shape
        return blocks, two, heads, size

    def token(self, place: int) -> Floats:
        """Keys and values of one token in every block, (L, 2, N, D), in one piece."""
        return np.ascontiguousarray(self._arrays[:, :, :, place])

    def put(self, place: int, keys_values: Floats) -> None:
        """Put back what `token` gave. `length` does not move."""
        self._arrays[:, :, :, place] = keys_values

    def copy_prefix(self, other: "KVCache", tokens: int, known: int = 0) -> None:
        """Begin with the first tokens of another sequence, the first `known` of which are in."""
        self._arrays[:, :, :, known:tokens] = other._arrays[:, :, :, known:tokens]
        self.length = tokens


class OnePassCache:
    """For a sequence that begins and ends with one pass: nothing is kept of it.

    A block needs the keys and values of that block only, and nobody comes back to it.
    """

    capacity = 0
    length = 0

    def append(self, _block: int, k: Floats, v: Floats) -> tuple[Floats, Floats]:
        """The keys and values of the whole sequence, (N, T, D) each."""
        # In one piece by head: each slice of queries goes through all of them.
        return np.ascontiguousarray(k.swapaxes(0, 1)), np.ascontiguousarray(v.swapaxes(0, 1))

    def advance(self, tokens: int) -> None:
        """Nothing comes after these tokens."""
