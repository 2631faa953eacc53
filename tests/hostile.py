"""A corpus of hostile checkpoints, each made in a few lines, with the line that it gets.

Every entry spoils a sound checkpoint of one safetensors file. `test_hostile.py` converts them all
and holds docs/hostile.md to this list; hostile_arrays.py has those whose weights are spoiled.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints import shapes

Spoil = Callable[[Path], object]


@dataclass(frozen=True)
class Hostile:
    """A spoiled checkpoint.

    Attributes:
        name: of the entry.
        what: it does or asks for, in a few words.
        spoil: changes the checkpoint in a folder.
        line: the whole error, with {folder} where the folder's path stands.
    """

    name: str
    what: str
    spoil: Spoil
    line: str


def written(name: str, content: str | bytes) -> Spoil:
    """Replace a file."""
    return lambda folder: (folder / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def edited(name: str, change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Change the object in a JSON file."""

    def spoil(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return spoil


def updated(name: str, **values: Any) -> Spoil:
    """Set some keys of the object in a JSON file."""
    return edited(name, lambda found: found.update(values))


def sparse(name: str, size: int) -> Spoil:
    """Make a file huge; it takes no space on the disk."""

    def spoil(folder: Path) -> None:
        (folder / name).touch()
        os.truncate(folder / name, size)

    return spoil


def in_place_of(name: str, make: Callable[[Path], object]) -> Spoil:
    """Put something else under a file's name."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return spoil


def indexed(weight_map: Callable[[list[str]], Any]) -> Spoil:
    """An index in place of the one file, which is now called a.safetensors.

    Args:
        weight_map: makes what is in the index of the names of all tensors.
    """

    def spoil(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        names = list(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]))[1:]
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map(names)}))

    return spoil


def after(*spoils: Spoil) -> Spoil:
    """One after the other."""
    return lambda folder: [spoil(folder) for spoil in spoils]


CONFIG, TOKENIZER, INDEX = "config.json", "tokenizer.json", "model.safetensors.index.json"
GENERATION, TOKENS = "generation_config.json", "special_tokens_map.json"
DEEP = "more than 20 objects and arrays in each other"

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
        "cannot read {folder}/config.json: NaN is no JSON",
    ),
    Hostile(
        "config-infinite",
        "a number that is infinite as a float",
        written(CONFIG, '{"hidden_size": 1e999}'),
        "config.json: hidden_size is inf, expected a positive integer",
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
        "config.json: n_layer is 1,000,000,000, expected at most 1,000",
    ),
    Hostile(
        "config-hidden",
        "matrices of 2**120 numbers",
        updated(CONFIG, hidden_size=2**60),
        "config.json: hidden_size is 1,152,921,504,606,846,976, expected at most 131,072",
    ),
    Hostile(
        "config-vocab",
        "a vocabulary of a trillion",
        updated(CONFIG, vocab_size=10**12),
        "config.json: vocab_size is 1,000,000,000,000, expected at most 16,777,216",
    ),
    Hostile(
        "config-escape",
        "text that clears the terminal and begins a line",
        updated(CONFIG, model_type="\x1b[2J\nok: converted"),
        r"config.json: model_type is '\x1b[2J\nok: converted'; only 'bloom' is supported",
    ),
    Hostile(
        "config-long",
        "a value of 900,000 characters, to be quoted",
        updated(CONFIG, model_type="x" * 900_000),
        "config.json: model_type is '" + "x" * 1972 + " … " + "x" * 972 + "'; only 'bloom' is "
        "supported",
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


def _part(room: str, part: dict[str, Any], times: int = 1) -> Spoil:
    inside = {"pre_tokenizer": "pretokenizers", "normalizer": "normalizers"}[room]
    return updated(TOKENIZER, **{room: {"type": "Sequence", inside: [part] * times}})


NEEDS = "which no tokenizer of a BLOOM needs; without this file a model takes and gives token ids"
REFUSED = "{folder}/tokenizer.json: "
TWICE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
SLOW = {"type": "Split", "pattern": {"Regex": "(a|a|aa)*$"}, "behavior": "Isolated", "invert": 0}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

TOKENIZERS = [
    Hostile(
        "tokenizer-large",
        "a file of a hundred MB",
        sparse(TOKENIZER, 10**8),
        "cannot read {folder}/tokenizer.json: it has 100,000,000 bytes, expected at most "
        "32,000,000",
    ),
    Hostile(
        "tokenizer-many-parts",
        "a million objects of two bytes",
        written(TOKENIZER, '{"model": [' + "{}," * 1_000_000 + "0]}"),
        "cannot read {folder}/tokenizer.json: some 2,000,002 values, expected at most 1,200,000",
    ),
    Hostile(
        "tokenizer-normalizer",
        "doubles every text forty times",
        _part("normalizer", TWICE, 40),
        REFUSED + "its normalizer has 40 parts, " + NEEDS,
    ),
    Hostile(
        "tokenizer-replace",
        "replaces text by other text",
        _part("normalizer", TWICE),
        REFUSED + "its normalizer has the part 'Replace', " + NEEDS,
    ),
    Hostile(
        "tokenizer-bytes",
        "spells every byte by two, again and again",
        _part("pre_tokenizer", BYTES, 30),
        REFUSED + "its pre_tokenizer has 30 parts, " + NEEDS,
    ),
    Hostile(
        "tokenizer-expression",
        "a regular expression that takes exponential time",
        _part("pre_tokenizer", SLOW),
        REFUSED + "its pre_tokenizer has the regular expression '(a|a|aa)*$', " + NEEDS,
    ),
    Hostile(
        "tokenizer-prefix",
        "a prefix that makes the tokenizers library panic",
        edited(TOKENIZER, lambda v: v["model"].update(continuing_subword_prefix="##########")),
        REFUSED + "its model has a continuing_subword_prefix, " + NEEDS,
    ),
    Hostile(
        "tokenizer-model",
        "another algorithm, which fails on some texts",
        edited(TOKENIZER, lambda v: v.update(model={"type": "Unigram", "vocab": [["a", 0.0]]})),
        REFUSED + "its model is no BPE, " + NEEDS,
    ),
    Hostile(
        "tokenizer-merges",
        "merges that are none, each of which takes a kilobyte in the library",
        edited(TOKENIZER, lambda v: v["model"]["merges"].extend([{"": 0}] * 100_000)),
        REFUSED + "its vocabulary or its merges are malformed, " + NEEDS,
    ),
    Hostile(
        "tokenizer-part-array",
        "a part of which the type is an array; fuzzing found it",
        updated(TOKENIZER, normalizer={"type": ["NFC"]}),
        REFUSED + "its normalizer has the part ['NFC'], " + NEEDS,
    ),
    Hostile(
        "tokenizer-added",
        "an added token of two million characters, for which the library takes 150 MB",
        edited(TOKENIZER, lambda v: v["added_tokens"][0].update(content="ab" * 1_000_000)),
        REFUSED + "it has more than 1,000,000 characters beside its vocabulary, " + NEEDS,
    ),
]

LINKS = [
    Hostile(
        "link-out",
        "has a file of this machine copied into the model",
        in_place_of(TOKENIZER, lambda path: path.symlink_to("/etc/passwd")),
        "{folder}/tokenizer.json is a link out of the checkpoint's folder, to /etc/passwd; "
        "expected a file. If you trust it, replace it by a copy",
    ),
    Hostile(
        "link-to-nothing",
        "a file that seems to be absent",
        in_place_of(TOKENIZER, lambda path: path.symlink_to("none")),
        "{folder}/tokenizer.json is a link to nothing; download it again",
    ),
    Hostile(
        "link-loop",
        "links to itself",
        in_place_of(CONFIG, lambda path: path.symlink_to(path)),
        "{folder}/config.json is a link to nothing; download it again",
    ),
]
