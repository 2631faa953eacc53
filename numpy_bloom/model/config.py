"""The sizes of a BLOOM, read from the `config.json` of a Hugging Face checkpoint.

Shape letters, used in every docstring and comment of this package:

    T  tokens in this pass, of all its sequences     H  hidden size
    S  tokens in one sequence's cache after it       N  attention heads
    B  sequences in the pass                         D  size of a head, H / N
    L  blocks                                        V  rows of the vocabulary
    Q  tokens of one sequence that attention takes at a time
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy_bloom.errors import NumpyBloomError, shown
from numpy_bloom.weights.bounded import read_json

CONFIG = "config.json"

ALIASES = {
    "hidden_size": ("hidden_size", "n_embed", "n_embd"),
    "num_attention_heads": ("num_attention_heads", "n_head"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer"),
    "vocab_size": ("vocab_size",),
}
"""Each size with the keys under which published BLOOM configs give it."""

MOST = {
    "hidden_size": 1 << 17,
    "num_attention_heads": 1 << 17,
    "num_hidden_layers": 1000,
    "vocab_size": 1 << 24,
}
"""At least nine times the sizes of the largest BLOOM; more is but a way to fill the memory."""

SWITCHES = ("apply_residual_connection_post_layernorm", "tie_word_embeddings")


@dataclass(frozen=True)
class BloomConfig:
    """What is to be known of a model before its weights are opened.

    Attributes:
        hidden_size: H.
        num_attention_heads: N, a divisor of H.
        num_hidden_layers: L.
        vocab_size: V, rows of the embedding; may exceed the tokenizer's entries.
        layer_norm_epsilon: added to the variance in every layer norm.
        apply_residual_connection_post_layernorm: where a block's residual branches off: after the
            layer norm (true) or before it (false, all published models).
        eos_token_ids: the ids that end a text; empty if the config names none, or a negative one.
        tie_word_embeddings: whether the head is the word embeddings.
    """

    hidden_size: int
    num_attention_heads: int
    num_hidden_layers: int
    vocab_size: int
    layer_norm_epsilon: float = 1e-5
    apply_residual_connection_post_layernorm: bool = False
    eos_token_ids: tuple[int, ...] = (2,)
    tie_word_embeddings: bool = True

    @property
    def head_size(self) -> int:
        """D."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], path: Path = Path(CONFIG)) -> "BloomConfig":
        """Read a parsed config.json; errors begin with its path.

        Raises:
            NumpyBloomError: another model type, quantized weights, a size that is missing,
                contradictory, no positive integer or absurdly large, heads that do not divide the
                hidden size, a value of a wrong type.
        """
        if values.get("model_type", "bloom") != "bloom":
            raise NumpyBloomError(
                f"{path}: model_type is {shown(values['model_type'])}; only 'bloom' is supported"
            )
        if values.get("quantization_config") is not None:
            raise NumpyBloomError(
                f"{path}: quantization_config is set, so the weights are not what their names "
                "say; convert the checkpoint that was quantized"
            )
        sizes: dict[str, Any] = {
            n: _size(values, keys, MOST[n], path) for n, keys in ALIASES.items()
        }
        hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
        if hidden % heads:
            raise NumpyBloomError(
                f"{path}: num_attention_heads {heads} does not divide hidden_size {hidden}"
            )
        if values.get("slow_but_exact") and values.get("pretraining_tp", 1) != 1:
            raise NumpyBloomError(
                f"{path}: slow_but_exact with a pretraining_tp other than 1 is not supported "
                "(transformers drops two biases there); set slow_but_exact to false"
            )
        epsilon = values.get("layer_norm_epsilon", cls.layer_norm_epsilon)
        if not isinstance(epsilon, float) or not 0 < epsilon < 1:
            raise NumpyBloomError(
                f"{path}: layer_norm_epsilon is {shown(epsilon)}, expected 0 < x < 1"
            )
        switches = {name: values.get(name, getattr(cls, name)) for name in SWITCHES}
        for name, value in switches.items():
            if not isinstance(value, bool):
                raise NumpyBloomError(f"{path}: {name} is {shown(value)}, expected a boolean")
        eos = values.get("eos_token_id", cls.eos_token_ids[0])
        return cls(
            **sizes,
            layer_norm_epsilon=epsilon,
            **switches,
            eos_token_ids=eos_token_ids(eos, f"{path}: eos_token_id"),
        )


def _size(values: Mapping[str, Any], keys: tuple[str, ...], most: int, path: Path) -> int:
    """The one value of a size that may stand under several keys."""
    found = {key: values[key] for key in keys if values.get(key) is not None}
    if not found:
        raise NumpyBloomError(f"{path}: {' or '.join(keys)} is missing")
    for key, value in found.items():
        if type(value) is not int or value < 1:
            raise NumpyBloomError(f"{path}: {key} is {shown(value)}, expected a positive integer")
        if value > most:
            raise NumpyBloomError(f"{path}: {key} is {value:,}, expected at most {most:,}")
    if len(set(found.values())) > 1:
        conflict = ", ".join(f"{key} {value}" for key, value in found.items())
        raise NumpyBloomError(f"{path}: conflicting sizes: {conflict}")
    return int(next(iter(found.values())))


def eos_token_ids(value: Any, name: str) -> tuple[int, ...]:
    """What a config's `eos_token_id` may be: absent (None), one token id or a list of them.

    At a negative one no text ends, as in transformers (`GenerationMixin._prepare_special_tokens`).

    Raises:
        NumpyBloomError: anything else; the message begins with `name`.
    """
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(i) is int for i in ids):
        raise NumpyBloomError(f"{name} is {shown(value)}, expected a token id or a list of them")
    return tuple(i for i in ids if i >= 0)


def read_config(folder: Path) -> BloomConfig:
    """The config of a folder, with the ends of text that generation_config.json may name.

    Raises:
        NumpyBloomError: one of the two files is malformed.
    """
    path = folder / CONFIG
    config = BloomConfig.from_dict(read_json(path), path)
    generation = folder / "generation_config.json"
    if generation.exists() or generation.is_symlink():
        eos = read_json(generation).get("eos_token_id")
        if eos is not None:
            ids = eos_token_ids(eos, f"{generation}: eos_token_id")
            config = replace(config, eos_token_ids=ids)
    return config
