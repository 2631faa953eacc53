"""The forward pass: token ids in, logits out.

BLOOM: BigScience 2022, https://arxiv.org/abs/2211.05100. A pass takes any number of tokens of any
number of sequences and uses each weight once. It falls into three parts, each of which needs only
a (T, H) array from the one before: `embed`, `run_blocks`, `unembed`.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model import weights
from numpy_bloom.model.block import block
from numpy_bloom.model.cache import KVCache, PackedCache
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.model.primitives import layer_norm
from numpy_bloom.model.tap import Tap, no_tap, prefixed
from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.linear import linear, lookup

TokenIds = npt.NDArray[np.int64]


def forward(
    sequences: Sequence[TokenIds],
    caches: Sequence[KVCache],
    w: weights.Bloom,
    config: BloomConfig,
    tap: Tap = no_tap,
) -> Floats:
    """Run new tokens of some sequences through all blocks; their caches grow by them.

    Args:
        sequences: for each sequence the ids of its new tokens, 1-D, not empty.
        caches: for each sequence its cache, which holds the tokens before them.
        tap: sees every stage.

    Returns:
        (T, H) float32, the last block's output for the tokens of all sequences, one after the
        other. `unembed` turns the rows that are asked for into logits.
    """
    cache = PackedCache([len(ids) for ids in sequences], caches)
    x = embed(np.concatenate(sequences), w, config, tap)  # (T, H)
    x = run_blocks(x, range(len(w.blocks)), cache, w, config, tap)
    cache.advance()
    return x


def embed(ids: TokenIds, w: weights.Bloom, config: BloomConfig, tap: Tap = no_tap) -> Floats:
    """Look up each token's row of the word embeddings and normalize it.

    Args:
        ids: (T,).

    Returns:
        (T, H) float32.
    """
    x = tap("embed", lookup(w.word_embeddings, ids))  # (T, H)
    return layer_norm(x, *w.word_embeddings_layernorm, config.layer_norm_epsilon)


def run_blocks(
    x: Floats,
    blocks: range,
    cache: PackedCache,
    w: weights.Bloom,
    config: BloomConfig,
    tap: Tap = no_tap,
) -> Floats:
    """Run the residual stream (T, H) through consecutive blocks.

    Args:
        blocks: their numbers.
        cache: earlier keys and values of the sequences in x; those of x are appended.
    """
    for i in blocks:
        x = block(x, w.blocks[i], cache.block(i), config, prefixed(tap, f"blocks.{i}."))
    return x


def unembed(x: Floats, w: weights.Bloom, config: BloomConfig, tap: Tap = no_tap) -> Floats:
    """Normalize rows of the last block's output and compare them with every word embedding.

    Args:
        x: (T, H), only the rows whose logits are wanted.

    Returns:
        Logits (T, V) float32.
    """
    x = tap("ln_final.normalized", layer_norm(x, *w.ln_f, config.layer_norm_epsilon))  # (T, H)
    return tap("logits", linear(x, w.lm_head))  # (T, V)


def check_token_ids(ids: npt.ArrayLike, config: BloomConfig) -> TokenIds:
    """Token ids as a 1-D int64 array.

    Raises:
        NumpyBloomError: there are none, they are no integers, or one is not in the vocabulary.
    """
    try:
        array = np.asarray(ids)
    except ValueError as error:  # lists of different lengths
        raise NumpyBloomError(f"token ids must be a 1-D array: {error}") from error
    if array.ndim != 1:
        raise NumpyBloomError(f"token ids must be a 1-D array, got shape {array.shape}")
    if array.size == 0:
        raise NumpyBloomError("the prompt is empty; give at least one token")
    if not np.issubdtype(array.dtype, np.integer):
        raise NumpyBloomError(f"token ids must be integers, got {array.dtype}")
    wrong = array[(array < 0) | (array >= config.vocab_size)]
    if wrong.size:
        raise NumpyBloomError(
            f"token id {wrong[0]} is out of range; the model's are 0 to {config.vocab_size - 1}"
        )
    return array.astype(np.int64)
