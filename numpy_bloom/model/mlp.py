"""The feed-forward half of a block."""

from numpy_bloom.model import parameters
from numpy_bloom.model.passes import Pass, token_slices
from numpy_bloom.model.primitives import affine, gelu
from numpy_bloom.weights.dtypes import Floats


def mlp(x: Floats, w: parameters.MLP, p: Pass) -> Floats:
    """Widen each token to 4H, apply GELU, and come back.

    Args:
        x: (T, H) float32.
        w: the block's parameters.
        p: the pass.

    Returns:
        (T, H) float32.
    """
    wide = affine(x, w.dense_h_to_4h)  # (T, 4H)

    def activate(rows: slice) -> None:
        pre = p.tap("mlp.pre", wide[rows], rows)
        wide[rows] = p.tap("mlp.post", gelu(pre), rows)

    p.for_each(token_slices(len(wide)), activate)
    return p.tap("mlp_out", affine(wide, w.dense_4h_to_h))  # (T, H)
