"""The forward pass: token ids in, logits out.

BLOOM: BigScience 2022, https://arxiv.org/abs/2211.05100. A pass takes any number of tokens of any
number of sequences and uses each weight once. It falls into three parts, each of which needs only
a (T, H) array from the one before: `embed`, `run_blocks`, `unembed`. Where only the probabilities
of known tokens are asked for, `log_probabilities` stands in place of `unembed`.
"""

from functools import reduce

import numpy as np
import numpy.typing as npt

from numpy_bloom.model import parameters
from numpy_bloom.model.block import block
from numpy_bloom.model.passes import Pass
from numpy_bloom.model.primitives import layer_norm
from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.linear import Multiply, for_each_tile, linear, lookup

TokenIds = npt.NDArray[np.int64]


def embed(ids: TokenIds, w: parameters.Parameters, p: Pass) -> Floats:
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


def run_blocks(x: Floats, blocks: range, w: parameters.Parameters, p: Pass) -> Floats:
    """Run the residual stream through consecutive blocks; the caches grow by its tokens.

    Args:
        x: (T, H) float32.
        blocks: numbers of the blocks.
        w: the parameters of these blocks.
        p: the pass.

    Returns:
        (T, H) float32.
    """
    for i, weights in zip(blocks, w.blocks, strict=True):
        x = block(x, weights, p.in_block(i))
    return x


def unembed(x: Floats, w: parameters.Parameters, p: Pass) -> Floats:
    """Normalize rows of the last block's output and compare them with every word embedding.

    Args:
        x: (T, H) float32, only the rows whose logits are wanted.
        w: the model's parameters.
        p: the pass.

    Returns:
        Logits (T, V) float32.
    """
    return p.tap("logits", linear(_final_norm(x, w, p), w.lm_head))  # (T, V)


def log_probabilities(x: Floats, targets: TokenIds, w: parameters.Parameters, p: Pass) -> Floats:
    """The logarithm of the softmax of each row's logits at one token, without (T, V) logits.

    log p(target) = logit(target) - log Σ exp(logit). The sum is taken tile by tile of the
    vocabulary, and the tiles' sums meet in the tiles' order, so that the result does not depend on
    which thread was faster.

    Args:
        x: (T, H) float32, only the rows that have a target.
        targets: (T,) int64, the token whose probability is wanted of each row.
        w: the model's parameters.
        p: the pass.

    Returns:
        Natural logarithms (T,) float32.
    """
    x = _final_norm(x, w, p)
    chosen = np.empty(len(x), dtype=np.float32)  # the targets' logits
    log_sums: dict[int, npt.NDArray[np.float64]] = {}  # (T,) of each tile, by its first row

    def work(rows: slice, multiply: Multiply) -> None:
        logits = np.empty((len(x), rows.stop - rows.start), dtype=np.float32)  # (T, rows)
        multiply(logits)
        here = np.flatnonzero((targets >= rows.start) & (targets < rows.stop))
        chosen[here] = logits[here, targets[here] - rows.start]
        log_sums[rows.start] = _log_sum_exp(logits)

    for_each_tile(x, w.lm_head, work)
    total = reduce(np.logaddexp, (log_sums[start] for start in sorted(log_sums)))  # (T,)
    return (chosen - total).astype(np.float32)


def _final_norm(x: Floats, w: parameters.Parameters, p: Pass) -> Floats:
    """(T, H)."""
    return p.tap("ln_final.normalized", layer_norm(x, *w.ln_f, p.config.layer_norm_epsilon))


def _log_sum_exp(logits: Floats) -> npt.NDArray[np.float64]:
    """log Σ exp(logit) of each row, (T,); the logits (T, rows) are overwritten.

    The maximum is subtracted before exp, which then cannot overflow, and added after the logarithm.
    """
    top = logits.max(axis=-1, keepdims=True)  # (T, 1)
    logits -= top
    sums = np.exp(logits, out=logits).sum(axis=-1, dtype=np.float64)  # (T,)
    result: npt.NDArray[np.float64] = np.log(sums) + top[:, 0]
    return result
