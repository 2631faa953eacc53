"""The feed-forward half of a block."""

from numpy_bloom.model import weights
from numpy_bloom.model.primitives import affine, gelu
from numpy_bloom.model.slices import for_each, token_slices
from numpy_bloom.model.tap import Tap
from numpy_bloom.weights.dtypes import Floats


def mlp(x: Floats, w: weights.MLP, tap: Tap) -> Floats:
    """Widen each token to 4H, apply GELU, and come back.

    Args:
        x: (T, H) float32.

    Returns:
        (T, H) float32.
    """
    wide = affine(x, w.dense_h_to_4h)  # (T, 4H)

    def activate(rows: slice) -> None:
        wide[rows] = tap("mlp.post", gelu(tap("mlp.pre", wide[rows])))

    for_each(token_slices(len(wide)), activate, w.dense_4h_to_h.weight.team, tap)
    return tap("mlp_out", affine(wide, w.dense_4h_to_h))  # (T, H)
