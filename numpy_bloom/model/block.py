"""One transformer block."""

from numpy_bloom.model import weights
from numpy_bloom.model.attention import attention
from numpy_bloom.model.cache import BlockCache
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.model.mlp import mlp
from numpy_bloom.model.primitives import layer_norm
from numpy_bloom.model.tap import Tap
from numpy_bloom.weights.dtypes import Floats


def block(x: Floats, w: weights.Block, cache: BlockCache, config: BloomConfig, tap: Tap) -> Floats:
    """Attention, then MLP, each behind a layer norm and added to what came in.

    Where `apply_residual_connection_post_layernorm` is set, the sum starts from the layer norm's
    output instead of its input.

    Args:
        x: (T, H) float32, the residual stream.

    Returns:
        (T, H) float32.
    """
    epsilon, heads = config.layer_norm_epsilon, config.num_attention_heads
    post_layernorm = config.apply_residual_connection_post_layernorm

    x = tap("resid_pre", x)
    normalized = tap("ln1.normalized", layer_norm(x, *w.input_layernorm, epsilon))
    residual = normalized if post_layernorm else x
    x = residual + attention(normalized, w.self_attention, cache, heads, tap)  # (T, H)

    x = tap("resid_mid", x)
    normalized = tap("ln2.normalized", layer_norm(x, *w.post_attention_layernorm, epsilon))
    residual = normalized if post_layernorm else x
    x = residual + mlp(normalized, w.mlp, tap)  # (T, H)
    return tap("resid_post", x)
