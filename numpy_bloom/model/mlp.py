"""The feed-forward half of a block."""

from numpy_bloom.model import weights
from numpy_bloom.model.primitives import affine, gelu
from numpy_bloom.model.tap import Tap
from numpy_bloom.weights.dtypes import Floats

SLICE_BYTES = 4 << 20
"""Largest array of intermediates. A longer prompt is activated a slice of its tokens at a time."""


def mlp(x: Floats, w: weights.MLP, tap: Tap) -> Floats:
    """Widen each token to 4H, apply GELU, and come back.

    Args:
        x: (T, H) float32.

    Returns:
        (T, H) float32.
    """
    wide = affine(x, w.dense_h_to_4h)  # (T, 4H)
    step = max(1, SLICE_BYTES // (4 * wide.shape[1]))
    for start in range(0, len(wide), step):
        rows = slice(start, start + step)
        wide[rows] = tap("mlp.post", gelu(tap("mlp.pre", wide[rows])))
    return tap("mlp_out", affine(wide, w.dense_4h_to_h))  # (T, H)
