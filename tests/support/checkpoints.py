"""Makes small BLOOM checkpoints as Hugging Face writes them, in NumPy alone.

Every parameter is random, norms and biases included, and every file is written here byte by byte,
so that what the package reads is not also what it wrote.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>"]  # ids 0 to 3, as in BLOOM
EOS = 2
FIRST_BYTE = len(SPECIAL_TOKENS)  # the id of byte 0; those of the other 255 follow
MERGES = [(b"t", b"o"), (b"to", b"s"), (b" ", b"s"), (b"\xe4", b"\xb8")]
VOCAB_SIZE = FIRST_BYTE + 256 + len(MERGES) + 12  # some ids have no text, as in BLOOM

CODES = {"<f4": "F32", "<f2": "F16", "<u2": "BF16"}


def byte_ids(text: str | bytes) -> list[int]:
    """The ids of a text, one for each byte."""
    content = text.encode() if isinstance(text, str) else text
    return [FIRST_BYTE + byte for byte in content]


def byte_tokenizer(merges: Sequence[tuple[bytes, bytes]] = MERGES) -> Tokenizer:
    """A byte-level BPE in BLOOM's manner: special tokens, the 256 bytes, then the merged pairs."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(others)}

    def spelled(content: bytes) -> str:
        return "".join(letters[byte] for byte in content)

    entries = [spelled(bytes([byte])) for byte in range(256)]
    entries += [spelled(left + right) for left, right in merges]
    vocab = {entry: number for number, entry in enumerate(SPECIAL_TOKENS + entries)}
    pairs = [(spelled(left), spelled(right)) for left, right in merges]
    tokenizer = Tokenizer(models.BPE(vocab, pairs))
    word = Regex(r" ?[^(\s|[.,!?…。，、।۔،])]+")  # noqa: RUF001 - BLOOM's own
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(word, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL_TOKENS])
    return tokenizer


def stored(values: Floats, dtype: str) -> Array:
    """Values of a type; a bfloat16 is the upper half of a float32, as uint16."""
    if dtype == "bfloat16":
        return (values.view("<u4") >> 16).astype("<u2")
    return values.astype({"float32": "<f4", "float16": "<f2"}[dtype])


def as_float32(array: Array) -> Floats:
    """What stored numbers stand for."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def shapes(hidden: int, blocks: int, vocab: int) -> dict[str, tuple[int, ...]]:
    """All parameters of a BLOOM with tied head, by the names of the checkpoints on the hub."""
    norms = ["word_embeddings_layernorm", "ln_f"]
    norms += [
        f"h.{i}.{name}_layernorm" for i in range(blocks) for name in ("input", "post_attention")
    ]
    linears = {
        "self_attention.query_key_value": (3 * hidden, hidden),
        "self_attention.dense": (hidden, hidden),
        "mlp.dense_h_to_4h": (4 * hidden, hidden),
        "mlp.dense_4h_to_h": (hidden, 4 * hidden),
    }
    result: dict[str, tuple[int, ...]] = {"word_embeddings.weight": (vocab, hidden)}
    for norm in norms:
        result |= {f"{norm}.weight": (hidden,), f"{norm}.bias": (hidden,)}
    for i in range(blocks):
        for name, (outputs, inputs) in linears.items():
            result[f"h.{i}.{name}.weight"] = (outputs, inputs)
            result[f"h.{i}.{name}.bias"] = (outputs,)
    return result


@dataclass
class Checkpoint:
    """A random BLOOM. Change its tensors and settings, then write it.

    Attributes:
        dtype: of all tensors.
        lm_head: None (tied), or "equal" to the embeddings, or "different".
        tensors: by their names without prefix; filled in.
        config: config.json; filled in.
        generation_config: generation_config.json; None for no such file.
        tokenizer: None for no tokenizer.json.
    """

    heads: int = 2
    hidden: int = 16
    blocks: int = 2
    vocab: int = VOCAB_SIZE
    dtype: str = "float32"
    lm_head: str | None = None
    seed: int = 0
    tensors: dict[str, Array] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    generation_config: dict[str, Any] | None = None
    tokenizer: Tokenizer | None = field(default_factory=byte_tokenizer)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)

        def drawn(name: str, shape: tuple[int, ...]) -> Array:
            spread = 0.2 if len(shape) == 1 else 1.0 if "embeddings" in name else shape[1] ** -0.5
            centre = 1.0 if "layernorm.weight" in name or name == "ln_f.weight" else 0.0
            return stored(random.normal(centre, spread, shape).astype(np.float32), self.dtype)

        sizes = shapes(self.hidden, self.blocks, self.vocab)
        self.tensors = {name: drawn(name, shape) for name, shape in sizes.items()}
        if self.lm_head == "equal":
            self.tensors["lm_head.weight"] = self.tensors["word_embeddings.weight"].copy()
        elif self.lm_head == "different":
            self.tensors["lm_head.weight"] = drawn("lm_head", (self.vocab, self.hidden))
        self.config = {
            "architectures": ["BloomForCausalLM"],
            "model_type": "bloom",
            "hidden_size": self.hidden,
            "n_head": self.heads,
            "n_layer": self.blocks,
            "vocab_size": self.vocab,
            "layer_norm_epsilon": 1e-05,
            "apply_residual_connection_post_layernorm": False,
            "bos_token_id": 1,
            "eos_token_id": EOS,
            **self.config,
        }

    def write(self, folder: Path, *, prefix: str = "transformer.", shards: int = 1) -> Path:
        """Write the folder as `save_pretrained` does; several shards come with an index."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        if self.generation_config is not None:
            (folder / "generation_config.json").write_text(json.dumps(self.generation_config))
        if self.tokenizer is not None:
            self.tokenizer.save(str(folder / "tokenizer.json"))
        named = {
            name if name.startswith("lm_head") else prefix + name: array
            for name, array in self.tensors.items()
        }
        if shards == 1:
            write_safetensors(folder / "model.safetensors", named)
            return folder
        names = list(named)
        return _write_shards(
            folder, [{n: named[n] for n in names[i::shards]} for i in range(shards)]
        )

    def write_in_blocks(self, folder: Path) -> Path:
        """The same in shards cut as those of the 176B model: embeddings, one block each, ln_f."""
        self.write(folder)
        (folder / "model.safetensors").unlink()
        parts = ["word", *(f"h.{block}." for block in range(self.blocks)), "ln_f"]
        return _write_shards(
            folder,
            [{n: t for n, t in self.tensors.items() if n.startswith(part)} for part in parts],
        )


def _write_shards(folder: Path, shards: Sequence[Mapping[str, Array]]) -> Path:
    weight_map = {}
    for number, arrays in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, arrays)
        weight_map |= dict.fromkeys(arrays, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_safetensors(path: Path, arrays: Mapping[str, Array]) -> None:
    """A safetensors file; arrays of uint16 are bfloat16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        code = CODES[array.dtype.str]
        header[name] = {"dtype": code, "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.tobytes())
