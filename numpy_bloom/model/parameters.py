"""All parameters of a BLOOM, as a tree that is named like its checkpoint.

Vectors (norms and biases) are float32 arrays in memory. Big matrices are `Matrix` handles: their
numbers lie on disk or in memory, in their stored type, and only `linear` and `lookup` touch them.
"""

from typing import NamedTuple

from numpy_bloom.model.config import BloomConfig
from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.folder import EMBEDDINGS, FINAL_LAYERNORM, LM_HEAD, block_file
from numpy_bloom.weights.store import Matrix, WeightStore


class LayerNorm(NamedTuple):
    """(H,) each."""

    weight: Floats
    bias: Floats


class Affine(NamedTuple):
    """Matrix (outputs, inputs) and vector (outputs,) of x · Wᵀ + b."""

    weight: Matrix
    bias: Floats


class Attention(NamedTuple):
    """query_key_value: H → 3H, its rows ordered [N, 3, D]; dense: H → H."""

    query_key_value: Affine
    dense: Affine


class MLP(NamedTuple):
    """H → 4H and back."""

    dense_h_to_4h: Affine
    dense_4h_to_h: Affine


class Block(NamedTuple):
    """One of the L transformer blocks."""

    input_layernorm: LayerNorm
    self_attention: Attention
    post_attention_layernorm: LayerNorm
    mlp: MLP


class Bloom(NamedTuple):
    """The whole model. `lm_head` is the word embeddings unless the checkpoint unties it."""

    word_embeddings: Matrix  # (V, H)
    word_embeddings_layernorm: LayerNorm
    blocks: tuple[Block, ...]
    ln_f: LayerNorm
    lm_head: Matrix  # (V, H)


def bloom_parameters(store: WeightStore, config: BloomConfig) -> Bloom:
    """Build the tree over an opened folder; vectors are read now, matrices when they are used."""

    def layer_norm(file: str, name: str) -> LayerNorm:
        return LayerNorm(store.vector(file, f"{name}.weight"), store.vector(file, f"{name}.bias"))

    def affine(file: str, name: str) -> Affine:
        return Affine(store.matrix(file, f"{name}.weight"), store.vector(file, f"{name}.bias"))

    def block(file: str) -> Block:
        return Block(
            layer_norm(file, "input_layernorm"),
            Attention(
                affine(file, "self_attention.query_key_value"), affine(file, "self_attention.dense")
            ),
            layer_norm(file, "post_attention_layernorm"),
            MLP(affine(file, "mlp.dense_h_to_4h"), affine(file, "mlp.dense_4h_to_h")),
        )

    word_embeddings = store.matrix(EMBEDDINGS, "word_embeddings.weight")
    untied = LM_HEAD in store.folder.matrices
    return Bloom(
        word_embeddings,
        layer_norm(EMBEDDINGS, "word_embeddings_layernorm"),
        tuple(block(block_file(i)) for i in range(config.num_hidden_layers)),
        layer_norm(FINAL_LAYERNORM, "ln_f"),
        store.matrix(LM_HEAD, "lm_head.weight") if untied else word_embeddings,
    )
