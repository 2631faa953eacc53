"""A GGUF file of a BLOOM for llama.cpp, matrices in their stored type, written without llama.cpp.

Names and layout as in llama.cpp's own converter for BLOOM. The vocabulary is a number without
texts: only ids go in and come out.
"""

from pathlib import Path
from typing import Any

import numpy as np
from converted import read_converted

from numpy_bloom.weights.dtypes import Floats, Stored, widen
from numpy_bloom.weights.safetensors_file import StoredArray, read_stored

TRAINED_TOKENS = 2048  # BLOOM paper (arXiv 2211.05100), table 3: sequence length

NAMES = {
    "word_embeddings": "token_embd",
    "word_embeddings_layernorm": "token_embd_norm",
    "ln_f": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
"""Names of the checkpoint with llama.cpp's."""


def write_gguf(converted: Path, target: Path) -> None:
    """Write the model of a converted folder whose head is tied, as all published ones are."""
    import gguf  # noqa: PLC0415  (not everybody has it)

    config, contents = read_converted(converted)
    writer = gguf.GGUFWriter(target, "bloom")
    writer.add_context_length(TRAINED_TOKENS)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(4 * config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    for file, arrays in contents:
        prefix = file.prefix.replace("h.", "blk.")
        for name, array in arrays.items():
            part, kind = name.rsplit(".", 1)
            _add(writer, f"{prefix}{NAMES[part]}.{kind}", array, config.num_attention_heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: Any, name: str, array: StoredArray, heads: int) -> None:
    """Add one array: matrices as they are stored, vectors in float32, as llama.cpp wants them."""
    import gguf  # noqa: PLC0415

    values = read_stored(array)
    if "query_key_value" in array.name:
        values = _query_key_value(values, heads)
    if len(array.shape) == 1:
        vector: Floats = widen(values, array.dtype)
        writer.add_tensor(name, vector)
        return
    types = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
    kind = gguf.GGMLQuantizationType[types[array.dtype]]
    writer.add_tensor(name, values.view(np.uint8), raw_dtype=kind)


def _query_key_value(values: Stored, heads: int) -> Stored:
    """Rows ordered head by head, (N, 3, D), to all queries, all keys, all values, (3, N, D)."""
    split = values.reshape(heads, 3, -1, *values.shape[1:])
    return np.ascontiguousarray(split.swapaxes(0, 1)).reshape(values.shape)
