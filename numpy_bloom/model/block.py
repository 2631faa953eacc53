"""One transformer block."""

from numpy_bloom.model import parameters
from numpy_bloom.model.attention import attention
from numpy_bloom.model.mlp import mlp
from numpy_bloom.model.passes import Pass
from numpy_bloom.model.primitives import layer_norm
from numpy_bloom.weights.dtypes import Floats


def block(x: Floats, w: parameters.Block, p: Pass) -> Floats:
    """Attention, then MLP, each behind a layer norm and added to what came in.

    Where `apply_residual_connection_post_layernorm` is set, the sum starts from the layer norm's
    output instead of its input.

    Args:
        x: (T, H) float32, the residual stream.
        w: the block's parameters.
        p: the pass, within this block.

    Returns:
        (T, H) float32.
    """
    epsilon = p.config.layer_norm_epsilon
    post_layernorm = p.config.apply_residual_connection_post_layernorm

    x = p.tap("resid_pre", x)
    normalized = p.tap("ln1.normalized", layer_norm(x, *w.input_layernorm, epsilon))
    residual = normalized if post_layernorm else x
    x = residual + attention(normalized, w.self_attention, p)  # (T, H)

    x = p.tap("resid_mid", x)
    normalized = p.tap("ln2.normalized", layer_norm(x, *w.post_attention_layernorm, epsilon))
    residual = normalized if post_layernorm else x
    x = residual + mlp(normalized, w.mlp, p)  # (T, H)
    return p.tap("resid_post", x)
