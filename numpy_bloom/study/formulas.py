"""Each stage recomputed by its own formula from the stages before it."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from numpy_bloom.model import parameters
from numpy_bloom.model.alibi import alibi_bias, alibi_slopes, causal_mask
from numpy_bloom.model.forward import TokenIds
from numpy_bloom.model.passes import token_slices
from numpy_bloom.model.primitives import gelu, layer_norm, softmax
from numpy_bloom.running.model import Model
from numpy_bloom.study.stages import LATER_KEYS, local_name, stage_names
from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.linear import linear, lookup, widened
from numpy_bloom.weights.matrix import Matrix

LinearMap = Callable[[Floats, Matrix], Any]


def recompute(
    model: Model,
    token_ids: TokenIds,
    stages: Mapping[str, Floats],
    so_far: Callable[[str], Floats],
) -> Iterator[tuple[str, Floats]]:
    """Recompute traced stages in their order, with the model's own functions in its own pieces.

    Args:
        model: that was run.
        token_ids: (T,), of the pass.
        stages: its trace.
        so_far: a stage (S, …) of this pass and those before it in the same text.

    Yields:
        Name and array of each stage whose inputs are in the trace.
    """
    formulas = _Formulas(model, token_ids, stages, so_far, linear)
    for name in stages:
        try:
            with model.computing():
                array = formulas(name)
        except KeyError:  # an input that was not traced
            continue
        yield name, array


def compute_exactly(model: Model, token_ids: TokenIds) -> dict[str, Floats]:
    """All stages of a pass over a text from its beginning, computed in float64."""
    stages: dict[str, Floats] = {}
    formulas = _Formulas(model, token_ids, stages, stages.__getitem__, _linear_in_float64)
    with model.computing():
        for name in stage_names(model.config.num_hidden_layers):
            stages[name] = formulas(name).astype(np.float64)
    return stages


def _linear_in_float64(x: Floats, weight: Matrix) -> Any:
    """x · Wᵀ (T, outputs) in float64."""
    y = np.empty((len(x), weight.shape[0]), dtype=np.float64)
    for rows, numbers in widened(weight):
        y[:, rows] = x @ numbers.astype(np.float64).T
    return y


class _Formulas:
    """What each stage is made of; a stage that is lacking is a KeyError."""

    def __init__(
        self,
        model: Model,
        token_ids: TokenIds,
        stages: Mapping[str, Floats],
        so_far: Callable[[str], Floats],
        multiply: LinearMap,
    ) -> None:
        self.w = model.parameters
        self.config = model.config
        self.ids = token_ids
        self.stages = stages
        self.so_far = so_far
        self.multiply = multiply

    def __call__(self, name: str) -> Floats:
        """A stage, from the stages that it depends on.

        Raises:
            KeyError: one of them is lacking.
        """
        if name in OUTSIDE:
            return OUTSIDE[name](self)
        block = _Block(self, int(name.split(".")[1]))
        return BLOCK_FORMULAS[local_name(name)](block)

    def norm(self, x: Floats, w: parameters.LayerNorm) -> Floats:
        return layer_norm(x, *w, self.config.layer_norm_epsilon)

    def final_norm(self) -> Floats:
        last = self.stages[f"blocks.{len(self.w.blocks) - 1}.resid_post"]
        rows = len(self.stages.get("ln_final.normalized", last))  # only these meet the vocabulary
        return self.norm(last[-rows:], self.w.ln_f)


class _Block:
    """The formulas' view of one block."""

    def __init__(self, formulas: _Formulas, number: int) -> None:
        self.formulas = formulas
        self.number = number
        self.w = formulas.w.blocks[number]
        self.norm = formulas.norm

    def __getitem__(self, stage: str) -> Floats:
        return self.formulas.stages[f"blocks.{self.number}.{stage}"]

    def resid_pre(self) -> Floats:
        stages, w = self.formulas.stages, self.formulas.w
        if self.number == 0:
            return self.norm(stages["embed"], w.word_embeddings_layernorm)
        return stages[f"blocks.{self.number - 1}.resid_post"]

    def residual(self, before: str, normalized: str) -> Floats:
        """What a half of the block is added to."""
        post = self.formulas.config.apply_residual_connection_post_layernorm
        return self[normalized if post else before]

    def affine(self, x: Floats, w: parameters.Affine) -> Floats:
        y: Floats = self.formulas.multiply(x, w.weight) + w.bias
        return y

    def fused(self, part: int) -> Floats:
        """q, k or v (T, N, D)."""
        config = self.formulas.config
        y = self.affine(self["ln1.normalized"], self.w.self_attention.query_key_value)
        return y.reshape(len(y), config.num_attention_heads, 3, config.head_size)[:, :, part]

    def by_head(self, name: str) -> Floats:
        """Keys or values (N, S, D) of all tokens so far, in one piece as in the model's cache."""
        stage = self.formulas.so_far(f"blocks.{self.number}.{name}")
        return np.ascontiguousarray(stage.swapaxes(0, 1))

    def qk(self) -> Floats:
        q, k = self["attn.q"].swapaxes(0, 1), self.by_head("attn.k")
        scale = q.dtype.type(1 / math.sqrt(q.shape[-1]))

        def piece(rows: slice, keys: int) -> Floats:
            scaled: Floats = q[:, rows] @ k[:, :keys].swapaxes(1, 2) * scale
            return scaled

        return _joined(piece, *self.sizes)

    def alibi(self) -> Floats:
        slopes = alibi_slopes(self.formulas.config.num_attention_heads)
        return _joined(lambda rows, keys: alibi_bias(slopes, _length(rows), keys), *self.sizes)

    def mask(self) -> Floats:
        return _joined(
            lambda rows, keys: causal_mask(_length(rows), keys),
            *self.sizes,
            LATER_KEYS["attn.mask"],
        )

    def pattern(self) -> Floats:
        scores = self["attn.attn_scores"]
        return _joined(lambda rows, keys: softmax(scores[:, rows, :keys]), *self.sizes)

    def z(self) -> Floats:
        pattern, v = self["attn.pattern"], self.by_head("attn.v")
        tokens, seen = pattern.shape[1:]
        z = np.empty((tokens, len(v), v.shape[-1]), dtype=v.dtype)
        for rows in token_slices(tokens):
            keys = seen - tokens + rows.stop
            z[rows] = (pattern[:, rows, :keys] @ v[:, :keys]).swapaxes(0, 1)
        return z

    @property
    def sizes(self) -> tuple[int, int]:
        """T and S."""
        return len(self.formulas.ids), len(self.formulas.so_far(f"blocks.{self.number}.attn.k"))


def _length(rows: slice) -> int:
    return rows.stop - rows.start  # type: ignore[no-any-return]


def _joined(
    piece: Callable[[slice, int], Floats], tokens: int, seen: int, fill: float = 0.0
) -> Floats:
    """A stage (…, T, S) from the pieces that the model computes.

    Args:
        piece: some queries' part of the stage, from their rows and how many keys they reach.
        tokens, seen: T and S.
        fill: stands for the keys that a piece leaves out.
    """
    parts = [(rows, piece(rows, seen - tokens + rows.stop)) for rows in token_slices(tokens)]
    last = parts[-1][1]
    whole = np.full((*last.shape[:-2], tokens, seen), fill, dtype=last.dtype)
    for rows, part in parts:
        whole[..., rows, : part.shape[-1]] = part
    return whole


OUTSIDE: dict[str, Callable[[_Formulas], Floats]] = {
    "embed": lambda f: lookup(f.w.word_embeddings, f.ids),
    "ln_final.normalized": _Formulas.final_norm,
    "logits": lambda f: f.multiply(f.stages["ln_final.normalized"], f.w.lm_head),
}
BLOCK_FORMULAS: dict[str, Callable[[_Block], Floats]] = {
    "resid_pre": _Block.resid_pre,
    "ln1.normalized": lambda b: b.norm(b["resid_pre"], b.w.input_layernorm),
    "attn.q": lambda b: b.fused(0),
    "attn.k": lambda b: b.fused(1),
    "attn.v": lambda b: b.fused(2),
    "attn.qk": _Block.qk,
    "attn.alibi": _Block.alibi,
    "attn.mask": _Block.mask,
    "attn.attn_scores": lambda b: b["attn.qk"] + b["attn.alibi"] + b["attn.mask"],
    "attn.pattern": _Block.pattern,
    "attn.z": _Block.z,
    "attn_out": lambda b: b.affine(
        b["attn.z"].reshape(len(b["attn.z"]), -1), b.w.self_attention.dense
    ),
    "resid_mid": lambda b: b.residual("resid_pre", "ln1.normalized") + b["attn_out"],
    "ln2.normalized": lambda b: b.norm(b["resid_mid"], b.w.post_attention_layernorm),
    "mlp.pre": lambda b: b.affine(b["ln2.normalized"], b.w.mlp.dense_h_to_4h),
    "mlp.post": lambda b: gelu(b["mlp.pre"]),
    "mlp_out": lambda b: b.affine(b["mlp.post"], b.w.mlp.dense_4h_to_h),
    "resid_post": lambda b: b.residual("resid_mid", "ln2.normalized") + b["mlp_out"],
}
