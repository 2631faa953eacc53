"""Checkpoints that torch and transformers themselves have written, read without either."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.conversions import open_checkpoint

from conversion.shards import strip_prefix
from conversion.source_tensor import SourceTensor
from conversion.torch_file import read_torch_file
from numpy_bloom.errors import NumpyBloomError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def check(source: SourceTensor, tensor: Any) -> None:
    """Type, shape and every bit equal those of a torch tensor, whole and row by row."""
    tensor = tensor.detach()
    assert f"torch.{source.dtype}" == str(tensor.dtype)
    assert source.shape == tuple(tensor.shape)
    bits = torch.int32 if source.dtype == "float32" else torch.int16
    expected = tensor.contiguous().view(bits).reshape(tensor.shape or (1,)).numpy()
    rows = len(expected)
    np.testing.assert_array_equal(source.read_rows(0, rows).view(expected.dtype), expected)
    for row in range(rows):
        found = source.read_rows(row, row + 1).view(expected.dtype)
        np.testing.assert_array_equal(found, expected[row : row + 1], strict=True)


def check_all(found: dict[str, SourceTensor], state: dict[str, Any]) -> None:
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        check(found[name], tensor)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_views(tmp_path: Path, dtype: str) -> None:
    base = torch.randn(6, 8, generator=torch.manual_seed(0)).to(getattr(torch, dtype))
    state = {
        "whole": base,
        "again": base,
        "transposed": base.t(),
        "sliced": base[2:5, 1:7:2],
        "row": base[3],
        "column": base[:, 5],
        "scalar": base[1, 2],
        "empty": base[6:],
        "cube": base.view(2, 3, 8).permute(2, 0, 1),
        "expanded": base[4].expand(3, 8),
        "parameter": torch.nn.Parameter(base[1:3]),
        "own": base.clone(),
    }
    torch.save(state, tmp_path / "a.bin")
    check_all(read_torch_file(tmp_path / "a.bin"), state)


def tiny_bloom(dtype: str) -> Any:
    config = transformers.BloomConfig(vocab_size=40, hidden_size=12, n_layer=2, n_head=3)
    torch.manual_seed(1)
    model = transformers.BloomForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data)
    return model.to(getattr(torch, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_state_dict_with_tied_head(tmp_path: Path, dtype: str) -> None:
    state = tiny_bloom(dtype).state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    found = open_checkpoint(tmp_path)
    check_all(found, state)
    head, embedding = found["lm_head.weight"], found["transformer.word_embeddings.weight"]
    assert head.offset == embedding.offset
    assert "h.1.mlp.dense_h_to_4h.weight" in strip_prefix(found)


def test_sharded_bin(tmp_path: Path) -> None:
    state = tiny_bloom("bfloat16").state_dict()
    names = sorted(state)
    weight_map = {name: f"pytorch_model-{i % 3}.bin" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        shard = {name: state[name] for name in names if weight_map[name] == file}
        torch.save(shard, tmp_path / file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    check_all(open_checkpoint(tmp_path), state)


@pytest.mark.parametrize(("size", "files"), [("50GB", 1), ("8KB", 2)])
def test_save_pretrained(tmp_path: Path, size: str, files: int) -> None:
    """transformers 5 writes safetensors only, and leaves a tied head out."""
    model = tiny_bloom("bfloat16")
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    state = model.state_dict()
    del state["lm_head.weight"]
    check_all(open_checkpoint(tmp_path), state)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_format_before_the_zip(tmp_path: Path) -> None:
    path = tmp_path / "old.bin"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(NumpyBloomError, match=r"old\.bin is not in the zip format.*PyTorch 1\.6"):
        read_torch_file(path)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"ids": torch.arange(3)}, r"'ids' .*LongStorage"),
        ({"bits": torch.zeros(3, dtype=torch.uint16)}, "_rebuild_tensor_v3"),
        ({"negated": torch.zeros(3)._neg_view()}, "unexpected arguments"),
        ({"sparse": torch.eye(2).to_sparse()}, "_rebuild_sparse_tensor"),
        ({"model": torch.nn.LayerNorm(2)}, "LayerNorm"),
        ({"state_dict": {"a": torch.zeros(3)}}, "'state_dict' is a dict"),
        ([torch.zeros(3)], "EMPTY_LIST"),
        (torch.zeros(3), "holds a Tensor"),
    ],
)
def test_other_objects(tmp_path: Path, state: Any, words: str) -> None:
    torch.save(state, tmp_path / "a.bin")
    with pytest.raises(NumpyBloomError, match=words):
        read_torch_file(tmp_path / "a.bin")
