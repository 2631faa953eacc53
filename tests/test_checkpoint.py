"""Checkpoint folders: where the weights are looked for, and what each fault is told."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import torch_zip
from support.conversions import open_checkpoint, whole

from conversion.shards import strip_prefix
from conversion.source_tensor import SourceTensor
from numpy_bloom.errors import NumpyBloomError

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


def write_bin(path: Path, *names: str) -> None:
    one = torch_zip.tensor(torch_zip.storage("0", 12), (3, 4), (4, 1))
    torch_zip.write(path, dict.fromkeys(names, one), {"0": VALUES.tobytes()})


ARRAYS = {"h.0.a": VALUES, "h.1.a": VALUES.T.copy().astype(np.float16), "ln_f": VALUES[0].copy()}


def write_index(folder: Path, stem: str, weight_map: Any) -> None:
    (folder / f"{stem}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_sharded(folder: Path) -> None:
    save_file({"h.0.a": ARRAYS["h.0.a"], "ln_f": ARRAYS["ln_f"]}, folder / "1.safetensors")
    save_file({"h.1.a": ARRAYS["h.1.a"]}, folder / "2.safetensors")
    weight_map = {"h.0.a": "1.safetensors", "h.1.a": "2.safetensors", "ln_f": "1.safetensors"}
    write_index(folder, "model.safetensors", weight_map)


def check_arrays(found: dict[str, SourceTensor]) -> None:
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (found[name].name, found[name].dtype) == (name, array.dtype.name)
        np.testing.assert_array_equal(whole(found[name]), array, strict=True)
        np.testing.assert_array_equal(found[name].read_rows(1, 2), array[1:2], strict=True)


def test_single_safetensors_is_preferred(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    check_arrays(open_checkpoint(tmp_path))


def test_sharded_safetensors(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    check_arrays(open_checkpoint(tmp_path))


@pytest.mark.parametrize("sharded", [False, True])
def test_bin_folder(tmp_path: Path, sharded: bool) -> None:
    if sharded:
        write_bin(tmp_path / "x.bin", "a")
        write_index(tmp_path, "pytorch_model.bin", {"a": "x.bin"})
    else:
        write_bin(tmp_path / "pytorch_model.bin", "a")
    np.testing.assert_array_equal(whole(open_checkpoint(tmp_path)["a"]), VALUES)


def folder_error(folder: Path) -> str:
    with pytest.raises(NumpyBloomError) as caught:
        open_checkpoint(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_no_weights(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "other.safetensors")
    message = folder_error(tmp_path)
    for name in ["model.safetensors", "pytorch_model.bin"]:
        assert f"{name}," in message and f"{name}.index.json" in message
    assert "No such file" in folder_error(tmp_path / "none")


def test_all_missing_shards_are_named(tmp_path: Path) -> None:
    shards = [f"pytorch_model_{number:05d}-of-00072.bin" for number in range(1, 73)]
    write_index(tmp_path, "pytorch_model.bin", {f"h.{name}": name for name in shards})
    write_bin(tmp_path / shards[4], f"h.{shards[4]}")
    message = folder_error(tmp_path)
    assert shards[4] not in message and "download" in message
    assert all(name in message for name in shards if name != shards[4])


def test_index_and_shards_disagree(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    save_file({"h.0.a": VALUES}, tmp_path / "1.safetensors")
    assert re.search(r"1\.safetensors lacks .*the index.*: ln_f$", folder_error(tmp_path))
    extra = {f"extra.{i}": VALUES for i in range(9)}
    save_file({"h.0.a": VALUES, "ln_f": VALUES, **extra}, tmp_path / "1.safetensors")
    message = folder_error(tmp_path)
    assert "holds tensors" in message and "extra.4 and 4 more" in message


@pytest.mark.parametrize(
    "file", ["../1.safetensors", "/1.safetensors", "a\\b", "sub/1.safetensors", "..", ".", "", 3]
)
def test_index_that_points_outside(tmp_path: Path, file: Any) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    save_file({"a": VALUES}, tmp_path / "1.safetensors")
    save_file({"a": VALUES}, tmp_path / "in" / "sub" / "1.safetensors")
    write_index(tmp_path / "in", "model.safetensors", {"a": file})
    message = folder_error(tmp_path / "in")
    assert f"'a' is said to lie in {file!r}" in message and "file name without folders" in message


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {}}'])
def test_broken_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in folder_error(tmp_path)


def test_truncated_safetensors(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-1])
    assert "model.safetensors" in folder_error(tmp_path)


def test_prefix() -> None:
    assert strip_prefix({"transformer.h.0.a": 1, "lm_head.weight": 2, "ln_f.bias": 3}) == {
        "h.0.a": 1,
        "lm_head.weight": 2,
        "ln_f.bias": 3,
    }
    with pytest.raises(NumpyBloomError, match=r"transformer\.NAME.*: h\.0\.a$"):
        strip_prefix({"transformer.h.0.a": 1, "h.0.a": 2, "b": 3})
