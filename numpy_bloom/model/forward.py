"""The forward pass: token ids in, logits out.

BLOOM: BigScience 2022, https://arxiv.org/abs/2211.05100. A pass takes any number of tokens of any
number of sequences and uses each weight once. It falls into three parts, each of which needs only
a (T, H) array from the one before: `embed`, `run_blocks`, `unembed`.
"""

import numpy as np
import numpy.typing as npt

from numpy_bloom.model import parameters
from numpy_bloom.model.block import block
from numpy_bloom.model.passes import Pass
from numpy_bloom.model.primitives import layer_norm
from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.linear import linear, lookup

TokenIds = npt.NDArray[np.int64]


def embed(ids: TokenIds, w: parameters.Bloom, p: Pass) -> Floats:
    """Look up each token's row of the word embeddings and normalize it.

    Args:
        ids: (T,) int64.
        w: the model's parameters.
        p: the pass.

    Returns:
        (T, H) float32.
    """
    x = p.tap("embed", lookup(w.word_embeddings, ids))  # (T, H)
    return layer_norm(x, *w.word_embeddings_layernorm, p.config.layer_norm_epsilon)


def run_blocks(x: Floats, blocks: range, w: parameters.Bloom, p: Pass) -> Floats:
    """Run the residual stream through consecutive blocks; the caches grow by its tokens.

    Args:
        x: (T, H) float32.
        blocks: numbers of the blocks.
        w: the model's parameters.
        p: the pass.

    Returns:
        (T, H) float32.
    """
    for i in blocks:
        x = block(x, w.blocks[i], p.in_block(i))
    return x


def unembed(x: Floats, w: parameters.Bloom, p: Pass) -> Floats:
    """Normalize rows of the last block's output and compare them with every word embedding.

    Args:
        x: (T, H) float32, only the rows whose logits are wanted.
        w: the model's parameters.
        p: the pass.

    Returns:
        Logits (T, V) float32.
    """
    x = p.tap("ln_final.normalized", layer_norm(x, *w.ln_f, p.config.layer_norm_epsilon))  # (T, H)
    return p.tap("logits", linear(x, w.lm_head))  # (T, V)
