"""A local Hugging Face folder as a mapping of tensors, whichever way its weights are stored."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from conversion.source_tensor import SourceTensor, row_major
from conversion.torch_file import read_torch_file
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.dtypes import FLOATING
from numpy_bloom.weights.folder import read_json
from numpy_bloom.weights.safetensors_file import read_header

__all__ = ["SourceTensor", "open_checkpoint", "strip_prefix"]

SINGLE_SAFETENSORS = "model.safetensors"
SINGLE_TORCH = "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"
WEIGHTS = [
    SINGLE_SAFETENSORS,
    SINGLE_SAFETENSORS + INDEX_SUFFIX,
    SINGLE_TORCH,
    SINGLE_TORCH + INDEX_SUFFIX,
]
"""Where a checkpoint's weights begin, in the order in which transformers looks for them."""

T = TypeVar("T")


def open_checkpoint(folder: Path) -> dict[str, SourceTensor]:
    """Find the tensors of a checkpoint, one file or sharded, by the names under which they lie.

    Only headers and descriptions are read, no weights.

    Raises:
        NumpyBloomError: `folder` holds no weights, a shard is missing or unreadable, the index
            names a file outside the folder, or index and shards disagree.
    """
    try:
        present = {file.name for file in folder.iterdir()}
    except OSError as error:
        raise NumpyBloomError(f"cannot read the checkpoint's folder {folder}: {error}") from error
    weights = next((name for name in WEIGHTS if name in present), None)
    if weights is None:
        raise NumpyBloomError(f"{folder} holds no weights; looked for {', '.join(WEIGHTS)}")
    if not weights.endswith(INDEX_SUFFIX):
        return _read_file(folder / weights)
    index = folder / weights
    expected = _read_index(index)
    _fail_if(
        sorted(expected.keys() - present),
        f"{folder} lacks files that {weights} names; "
        "download the checkpoint again to complete it. Missing",
        most=len(expected),
    )
    tensors = {}
    for file, names in expected.items():
        found = _read_file(folder / file)
        _fail_if(
            sorted(names - found.keys()), f"{folder / file} lacks tensors that {index} places there"
        )
        # An unlisted tensor means that shard and index are not of one checkpoint, or that two
        # shards hold the same name; which of the two would be meant is a guess.
        _fail_if(
            sorted(found.keys() - names),
            f"{folder / file} holds tensors that {index} does not place there",
        )
        tensors.update(found)
    return tensors


def strip_prefix(tensors: Mapping[str, T]) -> dict[str, T]:
    """The same mapping under names without `transformer.`, which some checkpoints have.

    Raises:
        NumpyBloomError: a name occurs with and without the prefix.
    """
    stripped = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    if len(stripped) < len(tensors):
        clashes = [name for name in stripped if {name, f"transformer.{name}"} <= tensors.keys()]
        _fail_if(clashes, "the checkpoint has both NAME and transformer.NAME, for NAME")
    return stripped


def _read_file(path: Path) -> dict[str, SourceTensor]:
    if path.suffix != ".safetensors":
        return read_torch_file(path)
    arrays = read_header(path)
    _fail_if(
        [
            f"{name} of {array.dtype}"
            for name, array in arrays.items()
            if array.dtype not in FLOATING
        ],
        f"{path} must hold {', '.join(FLOATING)}, but holds",
    )
    return {
        name: SourceTensor(
            name, array.dtype, array.shape, path, array.offset, row_major(array.shape)
        )
        for name, array in arrays.items()
    }


def _read_index(path: Path) -> dict[str, set[str]]:
    """The files that an index names, each with the tensors that it must hold."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise NumpyBloomError(f"{path}: 'weight_map' must be an object of tensor: file")
    files: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or file in ("", ".", "..") or set(file) & set("/\\"):
            raise NumpyBloomError(
                f"{path}: '{name}' is said to lie in {file!r}, expected a file name without folders"
            )
        files.setdefault(file, set()).add(name)
    return files


def _fail_if(names: list[str], message: str, most: int = 5) -> None:
    if names:
        rest = f" and {len(names) - most} more" if len(names) > most else ""
        raise NumpyBloomError(f"{message}: {', '.join(names[:most])}{rest}")
