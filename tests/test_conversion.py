"""Conversion: what the folder holds, and which checkpoints are refused."""

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from support import torch_zip
from support.checkpoints import Checkpoint, as_float32, stored
from support.conversions import read_arrays, refused, snapshot

from conversion import convert
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.dtypes import narrow

BLOCK = [
    "input_layernorm.weight",
    "input_layernorm.bias",
    "self_attention.query_key_value.weight",
    "self_attention.query_key_value.bias",
    "self_attention.dense.weight",
    "self_attention.dense.bias",
    "post_attention_layernorm.weight",
    "post_attention_layernorm.bias",
    "mlp.dense_h_to_4h.weight",
    "mlp.dense_h_to_4h.bias",
    "mlp.dense_4h_to_h.weight",
    "mlp.dense_4h_to_h.bias",
]
EMBEDDINGS = [
    "word_embeddings.weight",
    "word_embeddings_layernorm.weight",
    "word_embeddings_layernorm.bias",
]
CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
DENSE = "h.1.self_attention.dense.weight"


def files_of(checkpoint: Checkpoint) -> dict[str, list[tuple[str, str]]]:
    """The array files of a converted model: (name in the file, name in the checkpoint) in order."""
    files = {"embeddings": [(name, name) for name in EMBEDDINGS]}
    for i in range(checkpoint.blocks):
        files[f"block_{i:03d}"] = [(name, f"h.{i}.{name}") for name in BLOCK]
    files["final_layernorm"] = [("ln_f.weight", "ln_f.weight"), ("ln_f.bias", "ln_f.bias")]
    if checkpoint.lm_head == "different":
        files["lm_head"] = [("lm_head.weight", "lm_head.weight")]
    return {f"{stem}.safetensors": names for stem, names in files.items()}


@pytest.mark.usefixtures("past_the_page_cache")
@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("lm_head", [None, "equal", "different"])
def test_content(tmp_path: Path, dtype: str, lm_head: str | None) -> None:
    generation = {"eos_token_id": [2]}
    checkpoint = Checkpoint(dtype=dtype, lm_head=lm_head, blocks=3, generation_config=generation)
    source, target = checkpoint.write(tmp_path / "source"), tmp_path / "model"
    (source / "README.md").write_text("not taken over")
    convert(source, target)

    copied = ["config.json", "generation_config.json", "tokenizer.json"]
    expected = files_of(checkpoint)
    assert {path.name for path in target.iterdir()} == {*expected, *copied, "manifest.json"}
    for name in copied:
        assert (target / name).read_bytes() == (source / name).read_bytes()
    for file, names in expected.items():
        arrays = read_arrays(target / file)
        assert list(arrays) == [inside for inside, _ in names]
        for inside, name in names:
            code, values = arrays[inside]
            assert code == CODES[dtype]
            np.testing.assert_array_equal(values, checkpoint.tensors[name], strict=True)


def test_files_are_safetensors_with_aligned_data(tmp_path: Path) -> None:
    checkpoint = Checkpoint(dtype="bfloat16")
    convert(checkpoint.write(tmp_path / "source"), tmp_path / "model")
    for file, names in files_of(checkpoint).items():
        path = tmp_path / "model" / file
        with path.open("rb") as opened:
            assert (8 + int.from_bytes(opened.read(8), "little")) % 4096 == 0
        with safe_open(path, framework="numpy") as arrays:
            assert list(arrays.offset_keys()) == [inside for inside, _ in names]
            for inside, name in names:
                part = arrays.get_slice(inside)
                assert tuple(part.get_shape()) == checkpoint.tensors[name].shape
                assert part.get_dtype() == "BF16"


def test_manifest(tmp_path: Path) -> None:
    source = Checkpoint(dtype="float16").write(tmp_path / "some model")
    convert(source, tmp_path / "model")
    manifest = json.loads((tmp_path / "model/manifest.json").read_text())
    files = manifest.pop("files")
    assert manifest == {
        "format_version": 1,
        "source": "some model",
        "dtype": "float16",
        "head_dtype": "float16",
    }
    found = snapshot(tmp_path / "model")
    del found["manifest.json"]
    assert files == {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in found.items()
    }


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("lm_head", [None, "different"])
def test_layouts_of_the_source(
    tmp_path: Path, prefix: str, shards: int, lm_head: str | None
) -> None:
    checkpoint = Checkpoint(lm_head=lm_head)
    convert(checkpoint.write(tmp_path / "plain"), tmp_path / "expected")
    source = checkpoint.write(tmp_path / "source", prefix=prefix, shards=shards)
    convert(source, tmp_path / "model")
    names = files_of(checkpoint)
    expected, found = snapshot(tmp_path / "expected"), snapshot(tmp_path / "model")
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}


def write_bin(checkpoint: Checkpoint, folder: Path) -> Path:
    """The checkpoint as `pytorch_model.bin`."""
    checkpoint.write(folder)
    (folder / "model.safetensors").unlink()
    tensors, storages = {}, {}
    for key, (name, array) in enumerate(checkpoint.tensors.items()):
        strides = [step // array.itemsize for step in array.strides]
        storage = torch_zip.storage(str(key), array.size)
        tensors[f"transformer.{name}"] = torch_zip.tensor(storage, array.shape, tuple(strides))
        storages[str(key)] = array.tobytes()
    torch_zip.write(folder / "pytorch_model.bin", tensors, storages)
    return folder


def test_bin_gives_the_same_model(tmp_path: Path) -> None:
    checkpoint = Checkpoint()
    convert(checkpoint.write(tmp_path / "safetensors"), tmp_path / "expected")
    convert(write_bin(checkpoint, tmp_path / "bin"), tmp_path / "model")
    names = files_of(checkpoint)
    expected, found = snapshot(tmp_path / "expected"), snapshot(tmp_path / "model")
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("source_dtype", ["float32", "float16", "bfloat16"])
def test_dtypes(tmp_path: Path, source_dtype: str, dtype: str) -> None:
    checkpoint = Checkpoint(dtype=source_dtype, lm_head="different")
    source, target = checkpoint.write(tmp_path / "source"), tmp_path / "model"
    if (source_dtype, dtype) == ("bfloat16", "float16"):
        name = f"'transformer.word_embeddings.weight' in {source / 'model.safetensors'}"
        refused(source, f"{name} is bfloat16, whose range float16 does not have", dtype=dtype)
        return
    convert(source, target, dtype)
    assert json.loads((target / "manifest.json").read_text())["dtype"] == dtype
    for file, names in files_of(checkpoint).items():
        for inside, name in names:
            tensor = checkpoint.tensors[name]
            code, values = read_arrays(target / file)[inside]
            expected = tensor  # vectors keep their type
            if tensor.ndim == 2 and dtype != source_dtype:
                expected = narrow(as_float32(tensor), dtype)
            assert code == CODES[dtype if tensor.ndim == 2 else source_dtype]
            np.testing.assert_array_equal(values, expected, strict=True)


def test_mixed_types_are_kept(tmp_path: Path) -> None:
    checkpoint = Checkpoint()
    checkpoint.tensors[DENSE] = stored(checkpoint.tensors[DENSE], "bfloat16")
    convert(checkpoint.write(tmp_path / "source"), tmp_path / "model")
    assert json.loads((tmp_path / "model/manifest.json").read_text())["dtype"] == "mixed"
    arrays = read_arrays(tmp_path / "model/block_001.safetensors")
    codes = {name: code for name, (code, _) in arrays.items()}
    assert codes.pop("self_attention.dense.weight") == "BF16"
    assert set(codes.values()) == {"F32"}


def test_values_too_large_for_the_type(tmp_path: Path) -> None:
    checkpoint = Checkpoint()
    checkpoint.tensors[DENSE][3, 4] = 65_519  # the last float32 that does not become inf
    source = checkpoint.write(tmp_path / "source")
    convert(source, tmp_path / "fits", "float16")
    checkpoint.tensors[DENSE][3, 4] = -65_520
    told = f"'transformer.{DENSE}' in {source / 'model.safetensors'} has values too large for"
    refused(checkpoint.write(source), f"{told} float16", dtype="float16")
    checkpoint.tensors[DENSE][3, 4] = 3.4e38
    refused(checkpoint.write(source), f"{told} bfloat16", dtype="bfloat16")


def test_an_untied_head_that_is_missing(tmp_path: Path) -> None:
    checkpoint = Checkpoint(lm_head=None, config={"tie_word_embeddings": False})
    refused(checkpoint.write(tmp_path / "source"), "'lm_head.weight' is missing")


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [DENSE, "ln_f.bias", "word_embeddings.weight", "lm_head.weight"])
def test_numbers_that_are_not_finite(tmp_path: Path, name: str, wrong: float, dtype: str) -> None:
    checkpoint = Checkpoint(dtype=dtype, lm_head="different")
    checkpoint.tensors[name].reshape(-1)[-1] = stored(np.array([wrong], np.float32), dtype)[0]
    source = checkpoint.write(tmp_path / "source", prefix="")
    refused(source, f"'{name}' in {source / 'model.safetensors'} holds NaN or inf")


def without(name: str) -> Callable[[Checkpoint], None]:
    def change(checkpoint: Checkpoint) -> None:
        del checkpoint.tensors[name]

    return change


def reshaped(name: str, shape: tuple[int, ...]) -> Callable[[Checkpoint], None]:
    def change(checkpoint: Checkpoint) -> None:
        checkpoint.tensors[name] = np.zeros(shape, dtype=np.float32)

    return change


WRONG_TENSORS = [
    (without("ln_f.bias"), "'ln_f.bias' is missing"),
    (without(DENSE), f"'{DENSE}' is missing"),
    (without("word_embeddings_layernorm.weight"), "'word_embeddings_layernorm.weight' is missing"),
    (reshaped("h.2.input_layernorm.weight", (16,)), "'h.2.input_layernorm.weight' is unknown"),
    (reshaped("wpe.weight", (8, 16)), "'wpe.weight' is unknown"),
    (reshaped(DENSE, (16, 17)), f"'{DENSE}' has shape (16, 17), expected (16, 16)"),
    (reshaped("ln_f.bias", (1, 16)), "'ln_f.bias' has shape (1, 16), expected (16,)"),
    (reshaped("lm_head.weight", (16, 276)), "'lm_head.weight' has shape (16, 276), expected"),
    (
        reshaped("h.0.self_attention.query_key_value.weight", (16, 48)),
        "'h.0.self_attention.query_key_value.weight' has shape (16, 48), expected (48, 16)",
    ),
]


@pytest.mark.parametrize(("change", "told"), WRONG_TENSORS, ids=[told for _, told in WRONG_TENSORS])
def test_wrong_tensors(tmp_path: Path, change: Callable[[Checkpoint], None], told: str) -> None:
    checkpoint = Checkpoint()
    change(checkpoint)
    refused(checkpoint.write(tmp_path / "source"), told)


def test_many_faults_are_cut_short(tmp_path: Path) -> None:
    checkpoint = Checkpoint(blocks=4)
    checkpoint.config["n_layer"] = 2
    refused(checkpoint.write(tmp_path / "source"), "'h.2.input_layernorm.weight' is unknown; ")
    refused(tmp_path / "source", "and 19 more")


def test_unknown_dtype(tmp_path: Path) -> None:
    source = Checkpoint().write(tmp_path / "source")
    refused(source, "dtype is 'int3'; expected one of keep, float32,", dtype="int3")


def spoiled(name: str, content: bytes | None) -> Callable[[Path], None]:
    """Replace or remove a file of the source."""

    def change(source: Path) -> None:
        (source / name).unlink() if content is None else (source / name).write_bytes(content)

    return change


def truncated(source: Path) -> None:
    path = source / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)


SPOILED = [
    (truncated, "model.safetensors"),
    (spoiled("model.safetensors", b""), "model.safetensors"),
    (spoiled("model.safetensors", b"\xff" * 100), "model.safetensors"),
    (spoiled("model.safetensors", None), "holds no weights"),
    (spoiled("config.json", None), "config.json"),
    (spoiled("config.json", b"{"), "config.json"),
    (spoiled("config.json", b"\xff"), "config.json"),
    (spoiled("config.json", b"[" * 100_000), "config.json"),
    (spoiled("config.json", b"[]"), "must hold a JSON object, not list"),
    (spoiled("config.json", b"{}"), "hidden_size or n_embed or n_embd is missing"),
    (spoiled("config.json", b'{"model_type": "gpt2"}'), "model_type is 'gpt2'"),
]


@pytest.mark.parametrize(("spoil", "told"), SPOILED)
def test_spoiled_sources(tmp_path: Path, spoil: Callable[[Path], None], told: str) -> None:
    source = Checkpoint().write(tmp_path / "source")
    spoil(source)
    refused(source, told)


def test_truncated_bin(tmp_path: Path) -> None:
    source = write_bin(Checkpoint(), tmp_path / "source")
    path = source / "pytorch_model.bin"
    os.truncate(path, path.stat().st_size // 2)
    refused(source, str(path))


@pytest.mark.parametrize("source", ["no/such/folder", "nowhere", "/no/such"])
def test_unknown_source(tmp_path: Path, source: str) -> None:
    with pytest.raises(NumpyBloomError, match="neither a folder nor a name on the hub"):
        convert(source, tmp_path / "model")
    assert not (tmp_path / "model").exists()
