"""What a trace says about how the model comes to its next token."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from numpy_bloom.errors import NumpyBloomError, check_whole
from numpy_bloom.inputs import token_id_array
from numpy_bloom.model.primitives import layer_norm
from numpy_bloom.study.trace import Trace
from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.linear import Multiply, for_each_tile, lookup, widened
from numpy_bloom.weights.matrix import Matrix


class LogitLens(NamedTuple):
    """What each layer would say if it were the last (nostalgebraist 2020, "interpreting GPT: the
    logit lens"). Layer 0 is what enters block 0, layer i what leaves block i - 1.

    Attributes:
        token_ids: (L + 1, T, top) int64, the most probable next tokens, from the first.
        log_probabilities: (L + 1, T, top) float32, theirs, natural logarithms.
        entropy: (L + 1, T) float32, in nats.
    """

    token_ids: npt.NDArray[np.int64]
    log_probabilities: Floats
    entropy: Floats


class Attribution(NamedTuple):
    """A logit as a sum: what each part of the model adds to it directly, past all later parts.

    Attributes:
        token_id: whose logit it is.
        embedding: what the embedding, after its layer norm, adds.
        heads: (L, N) float64, what each head adds.
        attention_biases: (L,) float64, what the biases of `dense` add.
        mlps: (L,) float64, what each MLP adds.
        final_bias: what the last layer norm's bias adds.
        logit: the logit; the sum of all others up to rounding.
    """

    token_id: int
    embedding: float
    heads: npt.NDArray[np.float64]
    attention_biases: npt.NDArray[np.float64]
    mlps: npt.NDArray[np.float64]
    final_bias: float
    logit: float


def logit_lens(trace: Trace, top: int = 5) -> LogitLens:
    """Compare every layer's residual stream with the vocabulary, in one read of the head.

    Args:
        trace: with blocks.0.resid_pre and every resid_post.
        top: how many tokens of each layer and position.

    Raises:
        NumpyBloomError: a stage is lacking, `top` is below 1, or weights cannot be read.
    """
    check_whole("top", top, 1)
    model = trace.model
    layers = np.stack(residual_stream(trace))  # (L + 1, T, H)
    x = layer_norm(layers, *model.parameters.ln_f, model.config.layer_norm_epsilon)
    x = x.reshape(-1, x.shape[-1])
    top = min(top, model.config.vocab_size)
    tiles: dict[int, _TileSums] = {}

    def work(rows: slice, multiply: Multiply) -> None:
        logits = np.empty((len(x), rows.stop - rows.start), dtype=np.float32)
        multiply(logits)
        tiles[rows.start] = _tile_sums(logits, rows.start, top)

    with model.computing():
        for_each_tile(x, model.parameters.lm_head, work)
    token_ids, log_probabilities, entropy = _together([tiles[i] for i in sorted(tiles)], top)
    shape = layers.shape[:2]
    return LogitLens(
        token_ids.reshape(*shape, top),
        log_probabilities.reshape(*shape, top),
        entropy.reshape(shape),
    )


class _TileSums(NamedTuple):
    """Of some of the vocabulary, for each row: the largest logit, Σ exp(logit - largest),
    Σ exp(logit - largest) · logit, and the top logits with their tokens."""

    largest: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    weighted: npt.NDArray[np.float64]
    logits: Floats
    token_ids: npt.NDArray[np.int64]


def _tile_sums(logits: Floats, first: int, top: int) -> _TileSums:
    largest = logits.max(axis=-1, keepdims=True)
    weights = np.exp(logits - largest)
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
    return _TileSums(
        largest[:, 0].astype(np.float64),
        weights.sum(axis=-1, dtype=np.float64),
        (weights * logits).sum(axis=-1, dtype=np.float64),
        np.take_along_axis(logits, best, axis=-1),
        best + first,
    )


def _together(tiles: list[_TileSums], top: int) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Tokens and log-probabilities (rows, top) and entropies (rows,), from all tiles in order."""
    largest = np.stack([tile.largest for tile in tiles])  # (tiles, rows)
    scale = np.exp(largest - largest.max(axis=0))
    total = sum(s * tile.weights for s, tile in zip(scale, tiles, strict=True))
    weighted = sum(s * tile.weighted for s, tile in zip(scale, tiles, strict=True))
    log_total = np.log(total) + largest.max(axis=0)  # log Σ exp(logit)
    logits = np.concatenate([tile.logits for tile in tiles], axis=-1)
    token_ids = np.concatenate([tile.token_ids for tile in tiles], axis=-1)
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
    log_probabilities = np.take_along_axis(logits, best, axis=-1) - log_total[:, None]
    entropy = log_total - weighted / total  # -Σ p log p
    return (
        np.take_along_axis(token_ids, best, axis=-1),
        log_probabilities.astype(np.float32),
        entropy.astype(np.float32),
    )


def attributions(
    trace: Trace, positions: Sequence[int], token_ids: Sequence[int] | None = None
) -> list[Attribution]:
    """What each part of the model adds to some logits, the last layer norm's scale taken as it was.

    A logit is linear in what the parts add to the residual stream once that scale is given. Each
    `dense` is read once for all of them.

    Args:
        trace: with blocks.0.resid_pre, every attn.z and mlp_out, the last resid_post and logits.
        positions: of the P tokens after which the logits are, one at each.
        token_ids: whose logits, as many. Default: the likeliest ones'.

    Raises:
        NumpyBloomError: a stage is lacking, a position or an id is out of range, weights cannot be
            read, or the model's residuals begin after the layer norms, so that earlier parts do not
            add to the stream.
    """
    model, at = trace.model, list(positions)
    config, w, tokens = model.config, model.parameters, len(trace.token_ids)
    if config.apply_residual_connection_post_layernorm:
        raise NumpyBloomError(
            "with apply_residual_connection_post_layernorm a logit is no sum over all blocks"
        )
    outside = [position for position in at if not -tokens <= position < tokens]
    if outside:
        raise NumpyBloomError(f"position {outside[0]} is not among the {tokens} of the trace")
    if len(trace.stage("logits")) < tokens:
        raise NumpyBloomError("the trace has logits of its last position only; use Bloom.trace")
    last = trace.stage(f"blocks.{config.num_hidden_layers - 1}.resid_post")[at]
    logits = trace.stage("logits")[at]
    chosen = logits.argmax(axis=-1) if token_ids is None else token_id_array(token_ids, config)
    deviation = np.sqrt(last.var(axis=-1, dtype=np.float64) + config.layer_norm_epsilon)
    heads, biases, mlps = [], [], []
    with model.computing():
        rows = lookup(w.lm_head, chosen).astype(np.float64)  # (P, H)
        direction = w.ln_f.weight * rows / deviation[:, None]
        # The same as centring what is multiplied by it.
        direction -= direction.mean(axis=-1, keepdims=True)
        for i, block in enumerate(w.blocks):
            z = trace.stage(f"blocks.{i}.attn.z")[at]  # (P, N, D)
            dense = block.self_attention.dense
            through = _multiply_back(direction, dense.weight).reshape(z.shape)
            heads.append((z * through).sum(axis=-1))  # (P, N)
            biases.append(direction @ dense.bias)
            mlps.append((trace.stage(f"blocks.{i}.mlp_out")[at] * direction).sum(axis=-1))
    embeddings = (trace.stage("blocks.0.resid_pre")[at] * direction).sum(axis=-1)
    by_block = (np.stack(part, axis=1) for part in (heads, biases, mlps))  # (P, L, ...)
    final = rows @ w.ln_f.bias
    return [
        Attribution(int(token), float(e), h, b, m, float(f), float(logit[token]))
        for token, e, h, b, m, f, logit in zip(
            chosen, embeddings, *by_block, final, logits, strict=True
        )
    ]


def _multiply_back(x: npt.NDArray[np.float64], weight: Matrix) -> npt.NDArray[np.float64]:
    """x · W (P, inputs): what a step along each input moves the output along x (P, outputs)."""
    y = np.zeros((len(x), weight.shape[1]))
    for rows, numbers in widened(weight):
        y += x[:, rows] @ numbers.astype(np.float64)
    return y


def residual_stream(trace: Trace) -> list[Floats]:
    """The residual stream (T, H) before the first block and after each, L + 1 arrays.

    Raises:
        NumpyBloomError: one is lacking.
    """
    blocks = range(trace.model.config.num_hidden_layers)
    names = ["blocks.0.resid_pre", *(f"blocks.{i}.resid_post" for i in blocks)]
    return [trace.stage(name) for name in names]
