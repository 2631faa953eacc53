"""Damaged converted models: each fault is told in one line that names the file."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import Checkpoint, byte_ids
from support.conversions import converted

import numpy_bloom
from numpy_bloom.errors import NumpyBloomError

BLOCK = "block_001.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model."""
    checkpoint = Checkpoint(generation_config={"eos_token_id": 2})
    return converted(checkpoint, tmp_path_factory.mktemp("sound"))


Damage = Callable[[Path], None]


def written(name: str, content: bytes) -> Damage:
    def damage(model: Path) -> None:
        assert (model / name).is_file()
        (model / name).write_bytes(content)

    return damage


def removed(name: str) -> Damage:
    return lambda model: (model / name).unlink()


def edited(name: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change the object in a JSON file."""

    def damage(model: Path) -> None:
        value = json.loads((model / name).read_text())
        change(value)
        (model / name).write_text(json.dumps(value))

    return damage


def replaced(name: str, old: str, new: str) -> Damage:
    """Change some bytes of an array file's header, but not its size."""

    def damage(model: Path) -> None:
        content = (model / name).read_bytes()
        assert content.count(old.encode()) == 1
        assert len(old) == len(new)
        (model / name).write_bytes(content.replace(old.encode(), new.encode()))

    return damage


def truncated(name: str, left: int = -1) -> Damage:
    return lambda model: os.truncate(model / name, left % (model / name).stat().st_size)


def poisoned(name: str, array: str, value: float) -> Damage:
    """Overwrite the first number of an array."""

    def damage(model: Path) -> None:
        with (model / name).open("r+b") as file:
            length = int.from_bytes(file.read(8), "little")
            begin, _ = json.loads(file.read(length))[array]["data_offsets"]
            file.seek(8 + length + begin)
            file.write(np.float32(value).tobytes())

    return damage


def listed(suffix: str, values: Sequence[int]) -> Damage:
    """Give a small array beside a packed matrix other values, and any length."""

    def damage(model: Path) -> None:
        path, name = model / BLOCK, f"{QKV}.{suffix}"
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header, data = json.loads(content[8:start]), content[start:]
        begin, end = header[name]["data_offsets"]
        array = np.array(values, dtype="<u8").tobytes()
        more = len(array) - (end - begin)
        for entry in header.values():
            if entry["data_offsets"][0] >= end and entry is not header[name]:
                entry["data_offsets"] = [o + more for o in entry["data_offsets"]]
        header[name] |= {"shape": [len(values)], "data_offsets": [begin, begin + len(array)]}
        text = json.dumps(header).encode()
        parts = [len(text).to_bytes(8, "little"), text, data[:begin], array, data[end:]]
        path.write_bytes(b"".join(parts))
        size = path.stat().st_size
        edited("manifest.json", lambda m: m["files"][BLOCK].update(size=size))(model)

    return damage


MANIFEST, CONFIG = "manifest.json", "config.json"
GENERATION, TOKENIZER = "generation_config.json", "tokenizer.json"
EMBEDDINGS, FINAL = "embeddings.safetensors", "final_layernorm.safetensors"
QKV = "self_attention.query_key_value.weight"
DENSE_SHAPE = '"self_attention.dense.weight":{"dtype":"F32","shape":[16,16]'

DAMAGES = [
    (shutil.rmtree, "is not a folder; expected a converted model"),
    (
        removed(MANIFEST),
        "is not a converted model (it has no manifest.json); if it was one, delete",
    ),
    (written(MANIFEST, b"{"), MANIFEST),
    (written(MANIFEST, b"[]"), "manifest.json must hold a JSON object, not list"),
    (edited(MANIFEST, lambda m: m.update(format_version=2)), "format_version is 2, expected 1"),
    (edited(MANIFEST, lambda m: m.pop("format_version")), "format_version is None, expected 1"),
    (edited(MANIFEST, lambda m: m.pop("files")), "'files' is missing"),
    (edited(MANIFEST, lambda m: m["files"].pop(BLOCK)), f"does not list {BLOCK}"),
    (edited(MANIFEST, lambda m: m["files"].update({BLOCK: 7})), f"size of '{BLOCK}' is None"),
    (edited(MANIFEST, lambda m: m["files"][BLOCK].update(size="7")), f"size of '{BLOCK}' is '7'"),
    (edited(MANIFEST, lambda m: m["files"][BLOCK].update(size=7)), "bytes, expected 7; for a"),
    (removed(CONFIG), CONFIG),
    (written(CONFIG, b"\xff"), CONFIG),
    (edited(CONFIG, lambda c: c.pop("n_layer")), "config.json: num_hidden_layers or n_layer is"),
    (edited(CONFIG, lambda c: c.update(hidden_size=32)), "has shape (276, 16), expected (276, 32)"),
    (edited(CONFIG, lambda c: c.update(vocab_size=300)), "has shape (276, 16), expected (300, 16)"),
    (edited(CONFIG, lambda c: c.update(n_layer=3)), "does not list block_002.safetensors"),
    (edited(CONFIG, lambda c: c.update(n_head=3)), "3 does not divide hidden_size 16"),
    (written(GENERATION, b"nothing"), GENERATION),
    (written(TOKENIZER, b"{}"), TOKENIZER),
    (written(TOKENIZER, b"\xff"), TOKENIZER),
    (removed(TOKENIZER), "has no tokenizer.json, which text needs"),
    (removed(BLOCK), f"{BLOCK} is missing"),
    (truncated(BLOCK), f"{BLOCK} has"),
    (truncated(EMBEDDINGS, 4), f"{EMBEDDINGS} has 4 bytes, expected"),
    (replaced(BLOCK, DENSE_SHAPE, DENSE_SHAPE.replace("16,16", "8,32 ")), "expected (16, 16)"),
    (replaced(BLOCK, DENSE_SHAPE, DENSE_SHAPE.replace("F32", "I32")), "has type I32; expected"),
    (replaced(BLOCK, f'"{QKV}"', f'"{QKV[:-1]}x"'), f"'{QKV}' is missing"),
    (replaced(BLOCK, '{"input_layernorm.weight"', '["input_layernorm.weight"'), BLOCK),
    (poisoned(FINAL, "ln_f.bias", np.nan), f"'ln_f.bias' in {{model}}/{FINAL} holds NaN or inf"),
    (poisoned(BLOCK, "mlp.dense_h_to_4h.bias", np.inf), "dense_h_to_4h.bias' in"),
    (poisoned(BLOCK, QKV, np.nan), "output is not finite"),
    (poisoned(EMBEDDINGS, "word_embeddings.weight", np.inf), "output is not finite"),
]


@pytest.mark.parametrize(("damage", "told"), DAMAGES, ids=[told for _, told in DAMAGES])
def test_damages(original: Path, tmp_path: Path, damage: Damage, told: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(original, model)
    damage(model)
    with pytest.raises(NumpyBloomError) as error, numpy_bloom.load(model) as bloom:
        list(bloom.generate("Todos los <unk>", max_new_tokens=1))
    message = str(error.value)
    assert told.format(model=model) in message
    assert "\n" not in message
    assert str(model) in message


SHAPE_OF_BASE = f'{QKV}.exponent_base":{{"dtype":"U64","shape":'
OF_FORMATS = [
    ("int8", replaced(BLOCK, f'"{QKV}.row_scale"', f'"{QKV}.row_scalf"'), "row_scale' is missing"),
    ("int8", replaced(BLOCK, f'"{QKV}"', f'"{QKV[:-1]}x"'), f"'{QKV}' is missing"),
    ("int8", replaced(BLOCK, f'{QKV}":{{"dtype":"I8"', f'{QKV}":{{"dtype":"U8"'), "has shape"),
    ("int8", poisoned(BLOCK, f"{QKV}.row_scale", np.nan), "holds NaN or inf; for a way out"),
    ("int8", poisoned(BLOCK, f"{QKV}.column_scale", np.inf), "holds NaN or inf; for a way out"),
    ("int4", poisoned(BLOCK, f"{QKV}.column_scale", np.inf), "holds NaN or inf; for a way out"),
    ("int4", poisoned(BLOCK, QKV, np.nan), "output is not finite"),  # two scales of float16
    ("bfloat16-packed", replaced(BLOCK, f'"{QKV}.exceptions"', f'"{QKV}.exceptionz"'), "' is miss"),
    ("bfloat16-packed", replaced(BLOCK, f"{SHAPE_OF_BASE}[1]", f"{SHAPE_OF_BASE}[ ]"), "shape ()"),
    ("bfloat16-packed", listed("exponent_base", [128]), "exponent_base 128, expected 0 to 120"),
    ("bfloat16-packed", listed("exceptions", [5 << 16, 5 << 16]), "exceptions that are not in"),
    ("bfloat16-packed", listed("exceptions", [768 << 16]), "exceptions beyond its 768 weights"),
    ("bfloat16-packed", listed("exceptions", range(145)), f"/{BLOCK} is larger than its matrix"),
    ("bfloat16-packed", replaced(BLOCK, '"shape":[576]', '"shape":[288]'), BLOCK),
]


@pytest.mark.parametrize(("dtype", "damage", "told"), OF_FORMATS)
def test_damages_of_formats(tmp_path: Path, dtype: str, damage: Damage, told: str) -> None:
    model = converted(Checkpoint(), tmp_path, dtype)
    damage(model)
    with pytest.raises(NumpyBloomError) as error, numpy_bloom.load(model) as bloom:
        list(bloom.generate("Todos los <unk>", max_new_tokens=1))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [GENERATION, TOKENIZER])
def test_what_can_be_missing(original: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(original, tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    results = []
    for model in (original, tmp_path / "model"):
        with numpy_bloom.load(model) as bloom:
            generation = bloom.generate(byte_ids("Todos"), max_new_tokens=3)
            results.append([token.id for token in generation])
    assert results[0] == results[1]


def test_a_tokenizer_of_another_size(original: Path, tmp_path: Path) -> None:
    """Its size is looked at before what is in it."""
    model = tmp_path / "model"
    shutil.copytree(original, model)
    (model / TOKENIZER).write_text("")
    told = rf"{TOKENIZER} has 0 bytes, expected .*python -m conversion\.verify {model}$"
    with pytest.raises(NumpyBloomError, match=told):
        numpy_bloom.load(model)
