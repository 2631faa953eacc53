"""`python -m conversion.export`: a checkpoint again, with the bits of the one that it came of."""

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import Checkpoint, as_float32, stored
from support.commands import Command
from support.conversions import open_checkpoint, read_matrix, snapshot
from support.exports import exported, several

from conversion import convert
from conversion import export as export_command
from conversion.export import export
from conversion.shards import strip_prefix

CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@pytest.mark.parametrize(
    ("dtype", "lm_head", "tied", "shards"),
    [
        ("float32", None, True, "several"),
        ("float16", None, None, "one"),
        ("bfloat16", "equal", False, "several"),
        ("float16", "equal", None, "several"),
        ("bfloat16", "different", True, "one"),
        ("float32", "different", False, "several"),
    ],
)
def test_bits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    lm_head: str | None,
    tied: bool | None,
    shards: str,
) -> None:
    """Every tensor has its name, type and bits; what else there was is copied; and what is
    converted of it is what was converted before, byte for byte."""
    checkpoint = Checkpoint(
        dtype=dtype,
        lm_head=lm_head,
        config={} if tied is None else {"tie_word_embeddings": tied},
        generation_config={"eos_token_id": 2},
    )
    source = checkpoint.write(tmp_path / "first" / "name")
    convert(source, tmp_path / "model")
    if shards == "several":
        several(monkeypatch)
    hf_folder = tmp_path / "second" / "name"
    export(tmp_path / "model", hf_folder)
    expected = dict(checkpoint.tensors)
    if lm_head == "equal" and tied is not False:
        del expected["lm_head.weight"]  # transformers ties it
    arrays = exported(hf_folder)
    assert (len(list(hf_folder.glob("*.safetensors"))) > 1) == (shards == "several")
    assert arrays.keys() == {
        name if name == "lm_head.weight" else f"transformer.{name}" for name in expected
    }
    for name, tensor in expected.items():
        code, values = arrays[name if name == "lm_head.weight" else f"transformer.{name}"]
        assert code == CODES[dtype]
        np.testing.assert_array_equal(values, tensor, strict=True)
    before, after = snapshot(source), snapshot(hf_folder)
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert after[name] == before[name]
    convert(hf_folder, tmp_path / "again")
    assert snapshot(tmp_path / "again") == snapshot(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "first", "model", "second"]


@pytest.mark.parametrize("shards", ["one", "several"])
def test_mixed_types_and_extremes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: str
) -> None:
    """Each tensor has a type of its own, signs of zeros and the smallest numbers stay."""
    checkpoint = Checkpoint()
    for place, (name, tensor) in enumerate(checkpoint.tensors.items()):
        tensor.reshape(-1)[:4] = [-0.0, 0.0, 1e-40, -3e38 if place % 3 != 1 else 6e4]
        checkpoint.tensors[name] = stored(tensor, list(CODES)[place % 3])
    convert(checkpoint.write(tmp_path / "first" / "name"), tmp_path / "model")
    if shards == "several":
        several(monkeypatch)
    export(tmp_path / "model", tmp_path / "second" / "name")
    arrays = exported(tmp_path / "second" / "name")
    for name, tensor in checkpoint.tensors.items():
        _, values = arrays[f"transformer.{name}"]
        assert values.dtype == tensor.dtype
        assert values.tobytes() == tensor.tobytes()
    convert(tmp_path / "second" / "name", tmp_path / "again")
    assert snapshot(tmp_path / "again") == snapshot(tmp_path / "model")


def test_packed(tmp_path: Path) -> None:
    """bfloat16 again, with the weights beyond the packed exponents."""
    checkpoint = Checkpoint(hidden=64, dtype="bfloat16")
    for name, tensor in checkpoint.tensors.items():
        if "weight" in name:
            tensor.reshape(-1)[:2] = [0x8000, 0x7F7F]  # -0 and the largest number
    convert(checkpoint.write(tmp_path / "first" / "name"), tmp_path / "model", "bfloat16-packed")
    export(tmp_path / "model", tmp_path / "second" / "name")
    for name, (code, values) in exported(tmp_path / "second" / "name").items():
        assert code == "BF16"
        tensor = checkpoint.tensors[name.removeprefix("transformer.")]
        np.testing.assert_array_equal(values, tensor, strict=True)
    convert(tmp_path / "second" / "name", tmp_path / "again", "bfloat16-packed")
    assert snapshot(tmp_path / "again") == snapshot(tmp_path / "model")


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_integers(tmp_path: Path, dtype: str) -> None:
    """What they stand for, in float32, within the roundings of their products; vectors as they
    were."""
    checkpoint = Checkpoint(hidden=32, heads=4, dtype="bfloat16")
    convert(checkpoint.write(tmp_path / "source"), tmp_path / "model", dtype, head_dtype=dtype)
    export(tmp_path / "model", tmp_path / "hf")
    for key, (code, values) in exported(tmp_path / "hf").items():
        name = key.removeprefix("transformer.")
        tensor = checkpoint.tensors[name]
        if tensor.ndim == 1:
            assert code == "BF16"
            np.testing.assert_array_equal(values, tensor, strict=True)
            continue
        assert code == "F32"
        file = "embeddings" if name.startswith("word") else f"block_{int(name[2]):03d}"
        array = name if file == "embeddings" else name[4:]
        found, decoded = read_matrix(
            tmp_path / "model" / f"{file}.safetensors", array, tensor.shape
        )
        assert found == dtype
        np.testing.assert_allclose(values, decoded, rtol=2**-22, atol=0)
        assert np.abs(values - as_float32(tensor)).max() < 1  # near the original, too


def test_metadata_and_readers(tmp_path: Path, small_copy: Path) -> None:
    """Our own reader of checkpoints, and what transformers looks for in the header."""
    checkpoint = Checkpoint()
    export(small_copy, tmp_path / "hf")
    assert strip_prefix(open_checkpoint(tmp_path / "hf")).keys() == checkpoint.tensors.keys()
    with (tmp_path / "hf/model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["__metadata__"] == {"format": "pt"}


def test_a_shard_is_no_larger_than_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for one that is a single file of the model, here the embeddings; no block is torn."""
    convert(Checkpoint(blocks=5).write(tmp_path / "source"), tmp_path / "model")
    block = 4 * sum(t.size for n, t in Checkpoint().tensors.items() if n.startswith("h.0."))
    monkeypatch.setattr(export_command, "SHARD_BYTES", 2 * block)
    export(tmp_path / "model", tmp_path / "hf")
    monkeypatch.setattr(export_command, "SHARD_BYTES", 2 * block - 1)
    export(tmp_path / "model", tmp_path / "smaller")
    parts = []
    for folder in ("hf", "smaller"):
        index = json.loads((tmp_path / folder / "model.safetensors.index.json").read_text())
        shards: dict[str, set[str]] = {}
        for name, shard in index["weight_map"].items():
            shards.setdefault(shard, set()).add(name.removeprefix("transformer.")[:3])
        parts.append(list(shards.values()))
    first, last = {"wor"}, {"h.4", "ln_"}
    assert parts[0] == [first, {"h.0", "h.1"}, {"h.2", "h.3"}, last]
    assert parts[1] == [first, {"h.0"}, {"h.1"}, {"h.2"}, {"h.3"}, last]


def test_command(tmp_path: Path, small_copy: Path, command: Command) -> None:
    result = command(export_command, small_copy, tmp_path / "hf")
    assert (result.code, result.out) == (0, "")
    assert result.err.startswith("export: writes 44.2 KB in 1 shards, of ")
    assert exported(tmp_path / "hf")


@pytest.mark.parametrize("dtype", ["keep", "int4"])
def test_memory(tmp_path: Path, dtype: str) -> None:
    """A matrix of 32 MB passes through less than 20 MB."""
    rows = 32_000_000 // 256 // 4
    checkpoint = Checkpoint(hidden=256, blocks=1, config={"vocab_size": rows})
    checkpoint.tensors["word_embeddings.weight"] = np.ones((rows, 256), np.float32)
    convert(checkpoint.write(tmp_path / "source"), tmp_path / "model", head_dtype=dtype)
    tracemalloc.start()
    try:
        export(tmp_path / "model", tmp_path / "hf")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000
    shutil.rmtree(tmp_path)  # pytest keeps the folders of its last runs
