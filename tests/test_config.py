"""Reading config.json: every way in which a size is written, and every way to get it wrong."""

from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import Checkpoint
from support.conversions import converted

import numpy_bloom
from conversion import convert
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.config import MOST, BloomConfig

MINIMAL = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 100}
KEYS = [
    ("hidden_size", "hidden_size"),
    ("hidden_size", "n_embed"),
    ("hidden_size", "n_embd"),
    ("num_attention_heads", "num_attention_heads"),
    ("num_attention_heads", "n_head"),
    ("num_hidden_layers", "num_hidden_layers"),
    ("num_hidden_layers", "n_layer"),
    ("vocab_size", "vocab_size"),
]
"""Each size with a key under which it may stand."""

# What the published config.json files have besides sizes.
PUBLISHED = {
    "architectures": ["BloomForCausalLM"],
    "model_type": "bloom",
    "vocab_size": 250880,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "unk_token_id": 0,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "masked_softmax_fusion": True,
    "n_inner": None,
    "offset_alibi": 100,
    "pretraining_tp": 1,
    "skip_bias_add": True,
    "skip_bias_add_qkv": False,
    "slow_but_exact": False,
    "transformers_version": "4.20.0",
    "use_cache": True,
}
SIZES = [
    ("560m", {"n_embed": 1024, "n_layer": 24, "num_attention_heads": 16}, (1024, 16, 24)),
    ("1b1", {"n_embed": 1536, "n_layer": 24, "num_attention_heads": 16}, (1536, 16, 24)),
    ("1b7", {"n_embed": 2048, "n_layer": 24, "num_attention_heads": 16}, (2048, 16, 24)),
    ("3b", {"n_embed": 2560, "n_layer": 30, "num_attention_heads": 32}, (2560, 32, 30)),
    ("7b1", {"hidden_size": 4096, "n_layer": 30, "n_head": 32}, (4096, 32, 30)),
    ("176b", {"n_embed": 14336, "n_layer": 70, "num_attention_heads": 112}, (14336, 112, 70)),
]


def changed(**values: Any) -> dict[str, Any]:
    return MINIMAL | values


@pytest.mark.parametrize(("size", "keys", "expected"), SIZES, ids=[size for size, *_ in SIZES])
def test_published_models(size: str, keys: dict[str, int], expected: tuple[int, int, int]) -> None:
    # The largest model's config has no seq_length.
    extra = {} if size == "176b" else {"seq_length": 2048}
    config = BloomConfig.from_dict(PUBLISHED | keys | extra)
    hidden, heads, blocks = expected
    assert config == BloomConfig(hidden, heads, blocks, 250880, 1e-5, False, (2,))
    assert config.head_size * heads == hidden


@pytest.mark.parametrize(("size", "key"), KEYS)
def test_aliases(size: str, key: str) -> None:
    values: dict[str, Any] = MINIMAL.copy()
    values[key] = values.pop(size)
    assert BloomConfig.from_dict(values) == BloomConfig(64, 4, 3, 100)


@pytest.mark.parametrize(("size", "key"), KEYS)
@pytest.mark.parametrize("wrong", [0, -1, 4.0, 2.5, "4", True, [4]])
def test_sizes_are_positive_integers(size: str, key: str, wrong: Any) -> None:
    values: dict[str, Any] = MINIMAL.copy()
    del values[size]
    values[key] = wrong
    with pytest.raises(NumpyBloomError) as error:
        BloomConfig.from_dict(values)
    assert f"{key} is {wrong!r}, expected a positive integer" in str(error.value)


@pytest.mark.parametrize("size", MINIMAL)
def test_missing_sizes(size: str) -> None:
    for values in (changed(**{size: None}), {k: v for k, v in MINIMAL.items() if k != size}):
        with pytest.raises(NumpyBloomError) as error:
            BloomConfig.from_dict(values)
        assert "is missing" in str(error.value)
        for key in (key for name, key in KEYS if name == size):
            assert key in str(error.value)


@pytest.mark.parametrize(("size", "key"), [(size, key) for size, key in KEYS if size != key])
def test_two_keys_of_one_size(size: str, key: str) -> None:
    value = MINIMAL[size]
    assert BloomConfig.from_dict(changed(**{key: value})) == BloomConfig.from_dict(MINIMAL)
    with pytest.raises(NumpyBloomError) as error:
        BloomConfig.from_dict(changed(**{key: 2 * value}))
    message = str(error.value)
    assert "conflicting" in message
    assert f"{size} {value}" in message
    assert f"{key} {2 * value}" in message


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads 5 does not divide hidden_size 64"),
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"model_type": None}, "model_type is None"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon is 0.0"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon is '1e-5'"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan"),
        (
            {"apply_residual_connection_post_layernorm": "false"},
            "apply_residual_connection_post_layernorm is 'false'",
        ),
        ({"slow_but_exact": True, "pretraining_tp": 4}, "slow_but_exact"),
        ({"slow_but_exact": True, "pretraining_tp": "4"}, "slow_but_exact"),
        ({"eos_token_id": [-1.0]}, "eos_token_id is [-1.0]"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"eos_token_id": [2, None]}, "eos_token_id is [2, None]"),
        ({"eos_token_id": 2.0}, "eos_token_id is 2.0"),
    ],
)
def test_other_settings_are_checked(values: dict[str, Any], told: str) -> None:
    with pytest.raises(NumpyBloomError) as error:
        BloomConfig.from_dict(changed(**values))
    assert told in str(error.value)


def test_slow_but_exact_alone_changes_nothing() -> None:
    values = changed(slow_but_exact=True, pretraining_tp=1)
    assert BloomConfig.from_dict(values) == BloomConfig(64, 4, 3, 100)


def test_other_settings_are_read() -> None:
    config = BloomConfig.from_dict(
        changed(layer_norm_epsilon=1e-6, apply_residual_connection_post_layernorm=True)
    )
    assert config == BloomConfig(64, 4, 3, 100, 1e-6, True)


ENDS = [
    ({}, None, (2,)),
    ({"eos_token_id": 7}, None, (7,)),
    ({"eos_token_id": [7, 9]}, None, (7, 9)),
    ({"eos_token_id": None}, None, ()),
    ({"eos_token_id": 7}, {}, (7,)),
    ({"eos_token_id": 7}, {"eos_token_id": None}, (7,)),
    ({"eos_token_id": 7}, {"eos_token_id": 5}, (5,)),
    ({"eos_token_id": 7}, {"eos_token_id": [5, 6]}, (5, 6)),
    ({"eos_token_id": None}, {"eos_token_id": 5}, (5,)),
    # transformers warns that a text ends nowhere (or at the others), and goes on.
    ({"eos_token_id": 7}, {"eos_token_id": -1}, ()),
    ({"eos_token_id": 7}, {"eos_token_id": [-1, 5]}, (5,)),
    ({"eos_token_id": -1}, None, ()),
    ({"eos_token_id": -1}, {}, ()),
]


@pytest.mark.parametrize(("config", "generation", "expected"), ENDS)
def test_ends_of_text(
    config: dict[str, Any],
    generation: dict[str, Any] | None,
    expected: tuple[int, ...],
    tmp_path: Path,
) -> None:
    checkpoint = Checkpoint(config=config, generation_config=generation)
    if not config:
        del checkpoint.config["eos_token_id"]
    with numpy_bloom.load(converted(checkpoint, tmp_path)) as model:
        assert model.config.eos_token_ids == expected


def test_a_wrong_end_of_text_is_told_with_its_file(tmp_path: Path) -> None:
    model = converted(Checkpoint(), tmp_path)
    for folder in (tmp_path / "source", model):
        (folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    told = r"generation_config\.json.*eos_token_id is '</s>'"
    with pytest.raises(NumpyBloomError, match=told):
        numpy_bloom.load(model)
    with pytest.raises(NumpyBloomError, match=told):
        convert(tmp_path / "source", tmp_path / "other")


@pytest.mark.parametrize(("size", "most"), MOST.items())
def test_sizes_are_bounded(size: str, most: int) -> None:
    """Far above those of the largest model, and within what a list or a shape may have."""
    largest = {"hidden_size": 14336, "num_attention_heads": 112, "num_hidden_layers": 70}
    assert most >= 9 * largest.get(size, 250880)
    values = changed(num_attention_heads=1) | {size: most}
    if size == "num_attention_heads":
        values["hidden_size"] = most
    assert getattr(BloomConfig.from_dict(values), size) == most
    with pytest.raises(
        NumpyBloomError, match=rf"{size} is {most + 1:,}, expected at most {most:,}"
    ):
        BloomConfig.from_dict(values | {size: most + 1})
