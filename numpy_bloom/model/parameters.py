"""All parameters of a BLOOM, as a tree that is named like its checkpoint.

Vectors (norms and biases) are float32 arrays in memory. Big matrices are `Matrix` handles: their
numbers lie on disk or in memory, in their stored type, and only `linear` and `lookup` touch them.
"""

from typing import NamedTuple

from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.folder import EMBEDDINGS, FINAL_LAYERNORM, LM_HEAD, block_file
from numpy_bloom.weights.matrix import Matrix
from numpy_bloom.weights.store import WeightStore


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


class Embedding(NamedTuple):
    """What lies before the blocks."""

    word_embeddings: Matrix  # (V, H)
    word_embeddings_layernorm: LayerNorm


class Head(NamedTuple):
    """What lies behind the blocks. `lm_head` is the word embeddings unless the checkpoint unties
    it."""

    ln_f: LayerNorm
    lm_head: Matrix  # (V, H)


class Parameters(NamedTuple):
    """The whole model, or a range of its blocks; embedding and head if their files were opened."""

    blocks: tuple[Block, ...]
    embedding: Embedding | None
    head: Head | None

    @property
    def word_embeddings(self) -> Matrix:
        return self._embedding.word_embeddings

    @property
    def word_embeddings_layernorm(self) -> LayerNorm:
        return self._embedding.word_embeddings_layernorm

    @property
    def ln_f(self) -> LayerNorm:
        return self._head.ln_f

    @property
    def lm_head(self) -> Matrix:
        return self._head.lm_head

    @property
    def _embedding(self) -> Embedding:
        assert self.embedding is not None, "this range of blocks has no embedding"
        return self.embedding

    @property
    def _head(self) -> Head:
        assert self.head is not None, "this range of blocks has no head"
        return self.head


def bloom_parameters(store: WeightStore, blocks: range) -> Parameters:
    """Build the tree over an opened folder; vectors are read now, matrices when they are used.

    Args:
        store: over a folder of which these blocks were opened.
        blocks: their numbers.
    """

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

    embedding = head = None
    if EMBEDDINGS in store.folder.matrices:
        word_embeddings = store.matrix(EMBEDDINGS, "word_embeddings.weight")
        embedding = Embedding(word_embeddings, layer_norm(EMBEDDINGS, "word_embeddings_layernorm"))
    if store.folder.head is not None:
        name = "lm_head" if store.folder.head == LM_HEAD else "word_embeddings"
        matrix = store.matrix(store.folder.head, f"{name}.weight")
        head = Head(layer_norm(FINAL_LAYERNORM, "ln_f"), matrix)
    return Parameters(tuple(block(block_file(i)) for i in blocks), embedding, head)
