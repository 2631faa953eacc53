"""Multi-head self-attention with ALiBi and a cache."""

import math

import numpy as np

from numpy_bloom.model import weights
from numpy_bloom.model.alibi import alibi_bias, alibi_slopes, causal_mask
from numpy_bloom.model.cache import BlockCache
from numpy_bloom.model.primitives import affine, softmax
from numpy_bloom.model.tap import Tap
from numpy_bloom.weights.dtypes import Floats

SCORE_BYTES = 4 << 20
"""Largest array of scores. A longer prompt is attended a slice of its queries at a time."""


def attention(x: Floats, w: weights.Attention, cache: BlockCache, heads: int, tap: Tap) -> Floats:
    """Let every token gather values from itself and the tokens before it.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, with the biases of `alibi`.

    Args:
        x: (T, H), the tokens of this pass, sequence after sequence.
        cache: earlier keys and values of the same sequences; those of x are appended.
        heads: N.

    Returns:
        (T, H) float32.
    """
    tokens, hidden = x.shape
    fused = affine(x, w.query_key_value)  # (T, 3H)
    fused = fused.reshape(tokens, heads, 3, hidden // heads)  # (T, N, 3, D)
    q, k, v = (tap(f"attn.{name}", fused[:, :, i]) for i, name in enumerate("qkv"))  # (T, N, D)
    slopes = alibi_slopes(heads)

    z = np.empty((tokens, heads, hidden // heads), dtype=np.float32)
    for rows, keys, values in cache.append(k, v):  # one sequence of S tokens
        z[rows] = attend(q[rows], keys, values, slopes, tap)
    z = tap("attn.z", z)
    return tap("attn_out", affine(z.reshape(tokens, hidden), w.dense))  # (T, H)


def attend(q: Floats, keys: Floats, values: Floats, slopes: Floats, tap: Tap) -> Floats:
    """Attention of one sequence: softmax(q · kᵀ / √D + ALiBi + mask) · v, for each head.

    Args:
        q: (T, N, D), queries of the sequence's last T positions.
        keys, values: (N, S, D), of all its positions.
        slopes: (N,) of ALiBi.

    Returns:
        (T, N, D) float32.
    """
    tokens, heads, size = q.shape
    past = keys.shape[1] - tokens
    step = max(1, SCORE_BYTES // (4 * heads * keys.shape[1]))
    z = np.empty_like(q)
    for start in range(0, tokens, step):
        stop = min(start + step, tokens)
        queries, seen = stop - start, past + stop  # no query of the slice sees a later key
        scaled = q[start:stop].swapaxes(0, 1) @ keys[:, :seen].swapaxes(1, 2)
        scaled = tap("attn.qk", scaled * np.float32(1 / math.sqrt(size)))  # (N, T, S)
        bias = tap("attn.alibi", alibi_bias(slopes, queries, seen))
        mask = tap("attn.mask", causal_mask(queries, seen))  # (T, S)
        scores = tap("attn.scores", scaled + bias + mask)
        pattern = tap("attn.pattern", softmax(scores))
        z[start:stop] = (pattern @ values[:, :seen]).swapaxes(0, 1)  # (T, N, D)
    return z
