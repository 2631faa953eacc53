"""Multi-head self-attention with ALiBi and a cache."""

import math
from collections.abc import Callable

import numpy as np

from numpy_bloom.model import parameters
from numpy_bloom.model.passes import Pass, Visible
from numpy_bloom.model.primitives import affine, softmax
from numpy_bloom.weights.dtypes import Floats


def attention(x: Floats, w: parameters.Attention, p: Pass) -> Floats:
    """Let every token gather values from itself and the tokens before it in its sequence.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, with the biases of `alibi`.

    Args:
        x: (T, H) float32.
        w: the block's parameters.
        p: the pass; its caches take in the keys and values of x.

    Returns:
        (T, H) float32.
    """
    tokens, hidden = x.shape
    heads, size = p.config.num_attention_heads, p.config.head_size
    fused = affine(x, w.query_key_value).reshape(tokens, heads, 3, size)  # (T, N, 3, D)
    q = p.tap("attn.q", fused[:, :, 0])  # (T, N, D)
    k = p.tap("attn.k", fused[:, :, 1])  # (T, N, D)
    v = p.tap("attn.v", fused[:, :, 2])  # (T, N, D)

    z = np.empty((tokens, heads, size), dtype=np.float32)

    def attend_part(part: Visible) -> None:
        def tap(name: str, array: Floats) -> Floats:
            return p.tap(name, array, part.rows)

        z[part.rows] = attend(q[part.rows], part, tap)

    p.for_each(p.append_and_slice(k, v), attend_part)
    z = p.tap("attn.z", z)
    return p.tap("attn_out", affine(z.reshape(tokens, hidden), w.dense))  # (T, H)


def attend(q: Floats, seen: Visible, tap: Callable[[str, Floats], Floats]) -> Floats:
    """Attention of some tokens of one sequence: softmax(q · kᵀ / √D + ALiBi + mask) · v, by head.

    Args:
        q: (Q, N, D) float32, their queries.
        seen: keys and values of all positions up to the last of them, with bias and mask.
        tap: sees every stage.

    Returns:
        (Q, N, D) float32.
    """
    scaled = q.swapaxes(0, 1) @ seen.keys.swapaxes(1, 2)  # (N, Q, S)
    scaled *= np.float32(1 / math.sqrt(q.shape[-1]))
    scaled = tap("attn.qk", scaled)
    bias = tap("attn.alibi", seen.bias)  # (N, Q, S)
    mask = tap("attn.mask", seen.mask)  # (Q, S)
    scores = tap("attn.attn_scores", scaled + bias + mask)
    pattern = tap("attn.pattern", softmax(scores))
    return (pattern @ seen.values).swapaxes(0, 1)  # (Q, N, D)
