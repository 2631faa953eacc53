"""What a pass needs in memory besides its weights: an upper estimate, made before it starts."""

from numpy_bloom.model.config import BloomConfig
from numpy_bloom.model.passes import SLICE_TOKENS
from numpy_bloom.weights.kernels import scratch_bytes

FLOATS_PER_HIDDEN = 13
"""Arrays of (T, H) that are alive at once, at the second MLP matrix: the block's input, the
residual stream, its norm, the 4H-wide input and its two halves for the kernel, the output, and
one for temporaries."""

LIVE_SCORES = 4
"""Arrays of (N, T, S) that a slice has at once: scaled, bias, scores, probabilities."""

LIVE_WIDE = 4
"""Arrays of (T, 4H) that a slice has at once, in GELU."""

LIVE_LOGITS = 14
"""Arrays of (V,) float32 while a token is chosen: logits, penalized, scaled and filtered ones,
their order, sums and probabilities, of which some are twice as wide."""


def working_bytes(
    config: BloomConfig, tokens: int, cached: int, logit_rows: int, threads: int
) -> int:
    """Bytes of activations and scratch arrays.

    Args:
        tokens: T, of the largest pass.
        cached: S at its end.
        logit_rows: rows of the logits of that pass.
        threads: how many compute.
    """
    hidden = 4 * FLOATS_PER_HIDDEN * config.hidden_size * tokens
    scores = LIVE_SCORES * config.num_attention_heads * cached
    wide = LIVE_WIDE * 4 * config.hidden_size
    slices = threads * 4 * min(SLICE_TOKENS, tokens) * max(scores, wide)
    logits = 4 * config.vocab_size * (logit_rows + LIVE_LOGITS)
    return hidden + slices + logits + threads * scratch_bytes(config.hidden_size, tokens)
