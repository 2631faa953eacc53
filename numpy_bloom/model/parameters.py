"""All parameters of a BLOOM, as a tree that is named like its checkpoint.

Vectors (norms and biases) are float32 arrays in memory. Big matrices are `Matrix` handles: their
numbers lie on disk or in memory, in their stored type, and only `linear` and `lookup` touch them.
"""

from typing import NamedTuple

from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.matrix import Matrix


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
