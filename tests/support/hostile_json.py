"""Hostile configs and indexes."""

import os
from typing import Any

from support.checkpoints import shapes
from support.hostile import (
    CONFIG,
    DEEP,
    GENERATION,
    INDEX,
    TOKENS,
    Hostile,
    Spoil,
    after,
    in_place_of,
    indexed,
    sparse,
    updated,
    written,
)

CONFIGS = [
    Hostile(
        "config-terabyte",
        "a config of a terabyte",
        sparse(CONFIG, 10**12),
        "cannot read {folder}/config.json: it has 1,000,000,000,000 bytes, expected at most "
        "1,000,000",
    ),
    Hostile(
        "config-deep",
        "100,000 arrays in each other",
        written(CONFIG, "[" * 100_000),
        "cannot read {folder}/config.json: " + DEEP,
    ),
    Hostile(
        "config-deep-value",
        "a size that is 500 arrays in each other",
        written(CONFIG, '{"hidden_size": ' + "[" * 500 + "]" * 500 + "}"),
        "cannot read {folder}/config.json: " + DEEP,
    ),
    Hostile(
        "config-key-twice",
        "two sizes of which two readers may see two",
        written(CONFIG, '{"hidden_size": 16, "hidden_size": 32}'),
        "cannot read {folder}/config.json: the key 'hidden_size' occurs twice in one object",
    ),
    Hostile(
        "config-nan",
        "a number that JSON does not have",
        updated(CONFIG, layer_norm_epsilon=float("nan")),
        "{folder}/config.json: layer_norm_epsilon is nan, expected 0 < x < 1",
    ),
    Hostile(
        "config-infinite",
        "a number that is infinite as a float",
        written(CONFIG, '{"hidden_size": 1e999}'),
        "{folder}/config.json: hidden_size is inf, expected a positive integer",
    ),
    Hostile(
        "config-digits",
        "an integer of 5,000 digits",
        written(CONFIG, '{"hidden_size": ' + "9" * 5000 + "}"),
        "cannot read {folder}/config.json: Exceeds the limit (4300 digits) for integer string "
        "conversion: value has 5000 digits; use sys.set_int_max_str_digits() to increase the limit",
    ),
    Hostile(
        "config-blocks",
        "a billion blocks",
        updated(CONFIG, n_layer=10**9),
        "{folder}/config.json: n_layer is 1,000,000,000, expected at most 1,000",
    ),
    Hostile(
        "config-hidden",
        "matrices of 2**120 numbers",
        updated(CONFIG, hidden_size=2**60),
        "{folder}/config.json: hidden_size is 1,152,921,504,606,846,976, expected at most 131,072",
    ),
    Hostile(
        "config-vocab",
        "a vocabulary of a trillion",
        updated(CONFIG, vocab_size=10**12),
        "{folder}/config.json: vocab_size is 1,000,000,000,000, expected at most 16,777,216",
    ),
    Hostile(
        "config-escape",
        "text that clears the terminal and begins a line",
        updated(CONFIG, model_type="\x1b[2J\nok: converted"),
        r"{folder}/config.json: model_type is '\x1b[2J\nok: converted'; only 'bloom' is supported",
    ),
    Hostile(
        "config-long",
        "a value of 900,000 characters, to be quoted",
        updated(CONFIG, model_type="x" * 900_000),
        "{folder}/config.json: model_type is '" + "x" * 59 + "...; only 'bloom' is supported",
    ),
    Hostile(
        "config-utf16",
        "another encoding",
        written(CONFIG, '{"hidden_size": 16}'.encode("utf-16")),
        "cannot read {folder}/config.json: 'utf-8' codec can't decode byte 0xff in position 0: "
        "invalid start byte",
    ),
    Hostile(
        "config-pipe",
        "a pipe that nobody writes to",
        in_place_of(CONFIG, os.mkfifo),
        "cannot read {folder}/config.json: it is no regular file",
    ),
    Hostile(
        "config-folder",
        "a folder",
        in_place_of(CONFIG, os.mkdir),
        "cannot read {folder}/config.json: it is no regular file",
    ),
    Hostile(
        "config-quantized",
        "weights that stand for others, in a way that only the config tells",
        updated(CONFIG, quantization_config={"quant_method": "fp8"}),
        "{folder}/config.json: quantization_config is set, so the weights are not what their names "
        "say; convert the checkpoint that was quantized",
    ),
    Hostile(
        "config-tied",
        "a head that is the word embeddings for some readers, and not for others",
        updated(CONFIG, tie_word_embeddings="false"),
        "{folder}/config.json: tie_word_embeddings is 'false', expected a boolean",
    ),
    Hostile(
        "generation-deep",
        "ends of text, 30 arrays in each other",
        written(GENERATION, '{"eos_token_id": ' + "[" * 30 + "]" * 30 + "}"),
        "cannot read {folder}/generation_config.json: " + DEEP,
    ),
    Hostile(
        "special-tokens-key-twice",
        "a file that is only copied, for others to read",
        written(TOKENS, '{"eos_token": "a", "eos_token": "b"}'),
        "cannot read {folder}/special_tokens_map.json: the key 'eos_token' occurs twice in one "
        "object",
    ),
]

SHARD = "a.safetensors"


def _pointing(file: Any) -> Spoil:
    """An index that says of one tensor that it lies elsewhere."""
    return indexed(lambda names: dict.fromkeys(names, SHARD) | {names[-1]: file})


def _everywhere(_names: list[str]) -> dict[str, str]:
    """12,005 tensors, each in a file of its own."""
    return {name: f"{i:05d}.bin" for i, name in enumerate(shapes(16, 1000, 276))}


INDEXES = [
    Hostile(
        "index-parent",
        "a shard in the folder above",
        _pointing("../a.safetensors"),
        "{folder}/" + INDEX + ": 'transformer.h.0.mlp.dense_4h_to_h.bias' is said to lie in "
        "'../a.safetensors', expected a file name without folders",
    ),
    Hostile(
        "index-absolute",
        "a shard anywhere on the disk",
        _pointing("/etc/passwd"),
        "{folder}/" + INDEX + ": 'transformer.h.0.mlp.dense_4h_to_h.bias' is said to lie in "
        "'/etc/passwd', expected a file name without folders",
    ),
    Hostile(
        "index-nul",
        "a name that ends early for the system",
        _pointing("a.safetensors\0.bin"),
        "{folder}/" + INDEX + ": 'transformer.h.0.mlp.dense_4h_to_h.bias' is said to lie in "
        r"'a.safetensors\x00.bin', expected a file name without folders",
    ),
    Hostile(
        "index-long-name",
        "a name that no system takes",
        _pointing("a" * 300),
        "{folder}/" + INDEX + ": 'transformer.h.0.mlp.dense_4h_to_h.bias' is said to lie in "
        f"'{'a' * 300}', expected a file name without folders",
    ),
    Hostile(
        "index-array",
        "an array of names",
        indexed(lambda names: names),
        "{folder}/" + INDEX + ": 'weight_map' must be an object of tensor: file",
    ),
    Hostile(
        "index-many-unknown",
        "20,000 tensors that no BLOOM has",
        indexed(lambda names: {f"h.0.{i}": SHARD for i in range(20_000)}),
        "{folder}: 'word_embeddings.weight' is missing; 'word_embeddings_layernorm.weight' is "
        "missing; 'word_embeddings_layernorm.bias' is missing; 'h.0.input_layernorm.weight' is "
        "missing; 'h.0.input_layernorm.bias' is missing and 20012 more",
    ),
    Hostile(
        "index-two-names",
        "tensors under two names",
        indexed(lambda names: dict.fromkeys(["ln_f.bias", "transformer.ln_f.bias"], SHARD)),
        "the checkpoint has both NAME and transformer.NAME, for NAME: ln_f.bias",
    ),
    Hostile(
        "index-missing",
        "12,005 shards, none of which is there",
        after(updated(CONFIG, n_layer=1000), indexed(_everywhere)),
        "{folder} lacks files that it must hold; download the checkpoint again to complete it. "
        f"Missing: {', '.join(f'{i:05d}.bin' for i in range(100))} and 11905 more",
    ),
    Hostile(
        "index-lies",
        "tensors in a shard that has others",
        after(_pointing("b.safetensors"), written("b.safetensors", b"\2\0\0\0\0\0\0\0{}")),
        "{folder}/a.safetensors holds tensors that the index does not place there: "
        "transformer.h.0.mlp.dense_4h_to_h.bias",
    ),
    Hostile(
        "index-pipe",
        "a shard that is a pipe",
        after(
            indexed(lambda names: dict.fromkeys(names, "pipe")),
            lambda folder: os.mkfifo(folder / "pipe"),
        ),
        "cannot read {folder}/pipe: it is no regular file",
    ),
]
