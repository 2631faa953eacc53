"""From an opened folder to the tree of its parameters."""

from numpy_bloom.model.parameters import (
    MLP,
    Affine,
    Attention,
    Block,
    Embedding,
    Head,
    LayerNorm,
    Parameters,
)
from numpy_bloom.weights.folder import EMBEDDINGS, FINAL_LAYERNORM, LM_HEAD, block_file
from numpy_bloom.weights.store import WeightStore


def parameter_tree(store: WeightStore, blocks: range) -> Parameters:
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
    if EMBEDDINGS in store.folder.files:
        word_embeddings = store.matrix(EMBEDDINGS, "word_embeddings.weight")
        embedding = Embedding(word_embeddings, layer_norm(EMBEDDINGS, "word_embeddings_layernorm"))
    if store.folder.head is not None:
        name = "lm_head" if store.folder.head == LM_HEAD else "word_embeddings"
        matrix = store.matrix(store.folder.head, f"{name}.weight")
        head = Head(layer_norm(FINAL_LAYERNORM, "ln_f"), matrix)
    return Parameters(tuple(block(block_file(i)) for i in blocks), embedding, head)
