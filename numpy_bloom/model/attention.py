"""Multi-head self-attention with ALiBi and a cache."""

import math

import numpy as np

from numpy_bloom.model import weights
from numpy_bloom.model.alibi import alibi_bias, alibi_slopes, causal_mask
from numpy_bloom.model.cache import BlockCache
from numpy_bloom.model.primitives import affine, softmax
from numpy_bloom.model.slices import for_each, token_slices
from numpy_bloom.model.tap import Tap
from numpy_bloom.weights.dtypes import Floats


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

    def attend_slice(part: tuple[slice, Floats, Floats]) -> None:
        rows, keys, values = part
        z[rows] = attend(q[rows], keys, values, slopes, tap)

    parts = [
        (slice(first + part.start, first + part.stop), keys[:, :seen], values[:, :seen])
        for first, count, keys, values in cache.append(k, v)  # one sequence of S tokens
        for part in token_slices(count)
        for seen in [keys.shape[1] - count + part.stop]  # no query of the slice sees a later key
    ]
    for_each(parts, attend_slice, w.dense.weight.team, tap)
    z = tap("attn.z", z)
    return tap("attn_out", affine(z.reshape(tokens, hidden), w.dense))  # (T, H)


def attend(q: Floats, keys: Floats, values: Floats, slopes: Floats, tap: Tap) -> Floats:
    """Attention of one sequence: softmax(q · kᵀ / √D + ALiBi + mask) · v, for each head.

    Args:
        q: (T, N, D), queries of the last T of S positions.
        keys, values: (N, S, D), of all positions.
        slopes: (N,) of ALiBi.

    Returns:
        (T, N, D) float32.
    """
    queries, _, size = q.shape
    seen = keys.shape[1]
    scaled = q.swapaxes(0, 1) @ keys.swapaxes(1, 2) * np.float32(1 / math.sqrt(size))
    scaled = tap("attn.qk", scaled)  # (N, T, S)
    bias = tap("attn.alibi", alibi_bias(slopes, queries, seen))
    mask = tap("attn.mask", causal_mask(queries, seen))  # (T, S)
    scores = tap("attn.scores", scaled + bias + mask)
    pattern = tap("attn.pattern", softmax(scores))
    return (pattern @ values).swapaxes(0, 1)  # (T, N, D)
