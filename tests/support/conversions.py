"""What the tests of conversions share: folders read and compared, refusals, planted failures."""

import itertools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conversion import convert
from conversion.shards import find_shards, open_shards
from conversion.source import LocalSource
from conversion.source_tensor import SourceTensor
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.loading import DEMO
from support.checkpoints import Array, Checkpoint, Floats, write_safetensors
from support.formats import decode

NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
NUMPY |= {"I8": "i1", "U8": "u1", "U16": "<u2", "U64": "<u8"}
FORMATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FORMATS |= {"I8": "int8", "U8": "int4", "U16": "bfloat16-packed"}


def converted(checkpoint: Checkpoint, folder: Path, dtype: str = "keep", **options: Any) -> Path:
    """Write a checkpoint to `folder`/source and convert it."""
    convert(checkpoint.write(folder / "source"), folder / "model", dtype, **options)
    return folder / "model"


def open_checkpoint(folder: Path) -> dict[str, SourceTensor]:
    """All tensors of a checkpoint, one file or sharded, that is in one folder as a whole."""
    return open_shards(folder, find_shards(folder, LocalSource(folder, drops=False).sizes))


def whole(source: SourceTensor) -> Array:
    """All its rows."""
    return source.read_rows(0, source.shape[0])


def demo_checkpoint(folder: Path) -> Path:
    """The checkpoint that the demo model was made of."""
    folder.mkdir()
    tensors = {}
    for file in DEMO.glob("*.safetensors"):
        prefix = f"h.{int(file.stem[-3:])}." if file.stem.startswith("block_") else ""
        tensors |= {prefix + name: array for name, (_, array) in read_arrays(file).items()}
    write_safetensors(folder / "model.safetensors", tensors)
    for file in DEMO.glob("*.json"):
        if file.name != "manifest.json":
            shutil.copy(file, folder)
    return folder


def read_arrays(path: Path) -> dict[str, tuple[str, Array]]:
    """Type and stored numbers of each array of a safetensors file, in the order of the file."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    arrays = {}
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = np.frombuffer(content[start + begin : start + end], NUMPY[entry["dtype"]])
        arrays[name] = entry["dtype"], values.reshape(entry["shape"])
    return arrays


def read_matrix(path: Path, name: str, shape: tuple[int, ...]) -> tuple[str, Floats]:
    """Format of a matrix in a file, and what its numbers stand for."""
    arrays = read_arrays(path)
    parts = {key.removeprefix(name): array for key, (_, array) in arrays.items() if name in key}
    dtype = FORMATS[arrays[name][0]]
    return dtype, decode(dtype, shape, parts).astype(np.float32)


def manifest(model: Path) -> Mapping[str, Any]:
    content: Mapping[str, Any] = json.loads((model / "manifest.json").read_text())
    return content


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def refused(source: Path, told: str, target: Path | None = None, **options: Any) -> None:
    """The conversion fails, says so in one line, and leaves nothing but complete files, aside."""
    target = target or source.with_name("model")
    partial = target.with_name(target.name + ".partial")
    journal = target.with_name(target.name + ".partial.json")
    beside = sorted(source.parent.iterdir())
    with pytest.raises(NumpyBloomError) as error:
        convert(source, target, **options)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    if journal.exists() and journal not in beside:
        noted = json.loads(journal.read_text())["files"]
        assert noted.keys() == {file.name for file in partial.iterdir()} != set()
        shutil.rmtree(partial)
        journal.unlink()
    assert sorted(source.parent.iterdir()) == beside


def failing(real: Callable[..., Any], call: int, error: BaseException) -> Callable[..., Any]:
    """The same function, but its n-th call fails."""
    calls = itertools.count(1)

    def function(*args: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise error
        return real(*args, **options)

    return function
