"""Faults that implementations of BLOOM had, each as a change that a test makes to ours.

A fault's `plant` makes the change: in a module, through `monkeypatch`, or in an opened model.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from numpy_bloom.model import alibi, attention, block, forward, mlp, parameters, passes, primitives
from numpy_bloom.running.model import Model

Plant = Callable[[pytest.MonkeyPatch, Model], None]


class Fault(NamedTuple):
    """What goes wrong, and the first stage that shows it."""

    name: str
    plant: Plant
    stage: str


def uses(module: Any, name: str, new: Any) -> Plant:
    """`module` uses `new` where it should use its function `name`."""
    return lambda monkeypatch, _model: monkeypatch.setattr(module, name, new)


def block_has(index: int, edit: Callable[[parameters.Block], parameters.Block]) -> Plant:
    """One block has other weights."""

    def plant(_monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
        blocks = list(model.parameters.blocks)
        blocks[index] = edit(blocks[index])
        model.parameters = model.parameters._replace(blocks=tuple(blocks))

    return plant


def skips_norm(name: str) -> Plant:
    """The layer norm `name`, outside the blocks, does nothing."""

    def plant(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
        skipped = getattr(model.parameters, name).weight

        def layer_norm(x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
            return x if weight is skipped else primitives.layer_norm(x, weight, bias, epsilon)

        monkeypatch.setattr(forward, "layer_norm", layer_norm)

    return plant


def every_norm_is(new: Any) -> Plant:
    """All layer norms are computed by `new`."""

    def plant(monkeypatch: pytest.MonkeyPatch, _model: Model) -> None:
        for module in (forward, block):
            monkeypatch.setattr(module, "layer_norm", new)

    return plant


def heads_together(x: Any, w: parameters.Affine) -> Any:
    """Take the rows of query_key_value as [3, N, D]; N is that of the model under test."""
    y = primitives.affine(x, w)
    if y.shape[1] == 3 * x.shape[1]:
        return y.reshape(len(x), 3, 12, -1).swapaxes(1, 2).reshape(y.shape)
    return y


def plain_slopes(heads: int) -> Any:
    return np.array([2 ** (-8 * i / heads) for i in range(1, heads + 1)], dtype=np.float32)


def slopes_of_next_power(heads: int) -> Any:
    return alibi.alibi_slopes(2 ** math.ceil(math.log2(heads)))[:heads]


def rising_alibi(slopes: Any, queries: int, keys: int) -> Any:
    return -alibi.alibi_bias(slopes, queries, keys)


def float64_alibi(slopes: Any, queries: int, keys: int) -> Any:
    return alibi.alibi_bias(slopes.astype(np.float64), queries, keys)


def mask_that_shows_one_more(queries: int, keys: int) -> Any:
    hidden = np.full((queries, keys), -np.inf, dtype=np.float32)
    return np.triu(hidden, k=keys - queries + 2)


def mask_that_shows_one_less(queries: int, keys: int) -> Any:
    hidden = np.full((queries, keys), -np.inf, dtype=np.float32)
    mask = np.triu(hidden, k=keys - queries)
    mask[:, 0] = 0  # else softmax would have nothing to share out in the first row
    return mask


def mask_without_the_past(queries: int, keys: int) -> Any:
    return np.triu(np.full((queries, keys), -np.inf, dtype=np.float32), k=1)


def no_epsilon(x: Any, weight: Any, bias: Any, _epsilon: float) -> Any:
    return primitives.layer_norm(x, weight, bias, 0.0)


def unbiased_norm(x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    variance = x.var(axis=-1, keepdims=True, ddof=1)
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + epsilon) * weight + bias


def erf_gelu(x: Any) -> Any:
    erf = np.vectorize(math.erf, otypes=[np.float32])
    return x * np.float32(0.5) * (1 + erf(x / np.float32(math.sqrt(2))))


def float64_gelu(x: Any) -> Any:
    return primitives.gelu(x) * np.float64(1)


def float16_softmax(scores: Any) -> Any:
    return primitives.softmax(scores.astype(np.float16)).astype(np.float32)


def no_bias(part: parameters.Affine) -> parameters.Affine:
    return part._replace(bias=np.zeros_like(part.bias))


def no_dense_bias(w: parameters.Block) -> parameters.Block:
    dense = no_bias(w.self_attention.dense)
    return w._replace(self_attention=w.self_attention._replace(dense=dense))


def no_last_bias(w: parameters.Block) -> parameters.Block:
    return w._replace(mlp=w.mlp._replace(dense_4h_to_h=no_bias(w.mlp.dense_4h_to_h)))


def swapped_norms(w: parameters.Block) -> parameters.Block:
    first, second = w.input_layernorm, w.post_attention_layernorm
    return w._replace(input_layernorm=second, post_attention_layernorm=first)


def scale_by_hidden_size(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    root = math.sqrt(model.config.hidden_size)
    monkeypatch.setattr(attention, "math", SimpleNamespace(sqrt=lambda _size: root))


def other_residual_flag(_monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    flag = not model.config.apply_residual_connection_post_layernorm
    model.config = replace(model.config, apply_residual_connection_post_layernorm=flag)


def tied_head(_monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    w = model.parameters
    assert w.head is not None
    model.parameters = w._replace(head=w.head._replace(lm_head=w.word_embeddings))


def one_cache_for_all(monkeypatch: pytest.MonkeyPatch, _model: Model) -> None:
    begin = passes.Pass.begin

    def shared(config: Any, lengths: Any, caches: Any, *rest: Any) -> Any:
        largest = max(caches, key=lambda one: one.capacity)
        return begin(config, lengths, [largest] * len(caches), *rest)

    monkeypatch.setattr(passes.Pass, "begin", shared)


FAULTS = [
    Fault("no embedding norm", skips_norm("word_embeddings_layernorm"), "blocks.0.resid_pre"),
    Fault("no epsilon", every_norm_is(no_epsilon), "blocks.0.resid_pre"),
    Fault("unbiased variance", every_norm_is(unbiased_norm), "blocks.0.resid_pre"),
    Fault("norms swapped", block_has(0, swapped_norms), "blocks.0.ln1.normalized"),
    Fault("fused [3, N, D]", uses(attention, "affine", heads_together), "blocks.0.attn.q"),
    Fault("scale 1/√H", scale_by_hidden_size, "blocks.0.attn.qk"),
    Fault("slopes 2^(-8i/n)", uses(passes, "alibi_slopes", plain_slopes), "blocks.0.attn.alibi"),
    Fault(
        "slopes of next power",
        uses(passes, "alibi_slopes", slopes_of_next_power),
        "blocks.0.attn.alibi",
    ),
    Fault("alibi rises", uses(passes, "alibi_bias", rising_alibi), "blocks.0.attn.alibi"),
    Fault("float64 alibi", uses(passes, "alibi_bias", float64_alibi), "blocks.0.attn.alibi"),
    Fault(
        "mask shows the next token",
        uses(passes, "causal_mask", mask_that_shows_one_more),
        "blocks.0.attn.mask",
    ),
    Fault(
        "mask hides the token itself",
        uses(passes, "causal_mask", mask_that_shows_one_less),
        "blocks.0.attn.mask",
    ),
    Fault("float16 softmax", uses(attention, "softmax", float16_softmax), "blocks.0.attn.pattern"),
    Fault("no dense bias", block_has(0, no_dense_bias), "blocks.0.attn_out"),
    Fault("no dense bias in block 1", block_has(1, no_dense_bias), "blocks.1.attn_out"),
    Fault("residual flag", other_residual_flag, "blocks.0.resid_mid"),
    Fault("erf GELU", uses(mlp, "gelu", erf_gelu), "blocks.0.mlp.post"),
    Fault("float64 GELU", uses(mlp, "gelu", float64_gelu), "blocks.0.mlp.post"),
    Fault("no last bias", block_has(0, no_last_bias), "blocks.0.mlp_out"),
    Fault("no final norm", skips_norm("ln_f"), "ln_final.normalized"),
]
"""Of the model heads12-bfloat16."""

CACHE_FAULTS = {
    "one cache for all sequences": one_cache_for_all,
    "cache never grows": uses(passes.Pass, "advance", lambda _self: None),
    "mask forgets the cache": uses(passes, "causal_mask", mask_without_the_past),
}
"""Of which a single pass over a single sequence shows nothing."""
