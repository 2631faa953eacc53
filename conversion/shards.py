"""The weight files of a checkpoint: which hold which tensors, whichever way they are stored."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar

from conversion.source_tensor import SourceTensor, row_major
from conversion.torch_file import read_torch_file
from numpy_bloom.errors import NumpyBloomError, listing
from numpy_bloom.weights.bounded import is_file_name, read_json
from numpy_bloom.weights.dtypes import FLOATING
from numpy_bloom.weights.manifest import ARRAYS_SUFFIX
from numpy_bloom.weights.safetensors_file import read_header

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

MOST_NAMED = 100
"""Missing files that an error names; the largest BLOOM has 72."""

T = TypeVar("T")


def find_shards(folder: Path, present: Collection[str]) -> dict[str, set[str]]:
    """The files that hold a checkpoint's weights, each with the tensors that it must hold.

    Args:
        folder: where the index is, if there is one.
        present: names of all files of the checkpoint, wherever they are.

    Returns:
        For a checkpoint of a single file, whose tensors nothing but itself tells, that file and an
        empty set.

    Raises:
        NumpyBloomError: there are no weights, or the index is malformed or names a file outside
            the folder.
    """
    weights = next((name for name in WEIGHTS if name in present), None)
    if weights is None:
        raise NumpyBloomError(f"{folder} holds no weights; looked for {', '.join(WEIGHTS)}")
    return _read_index(folder / weights) if weights.endswith(INDEX_SUFFIX) else {weights: set()}


def open_shards(folder: Path, shards: Mapping[str, set[str]]) -> dict[str, SourceTensor]:
    """The tensors of some files, by the names under which they lie.

    Only headers and descriptions are read, no weights.

    Raises:
        NumpyBloomError: a file is missing or unreadable, or holds not just what it must hold.
    """
    _fail_if(
        sorted(file for file in shards if not (folder / file).exists()),
        f"{folder} lacks files that it must hold; "
        "download the checkpoint again to complete it. Missing",
        most=MOST_NAMED,
    )
    tensors = {}
    for file, names in shards.items():
        found = _read_file(folder / file)
        if names:
            _fail_if(
                sorted(names - found.keys()),
                f"{folder / file} lacks tensors that the index places there",
            )
            # An unlisted tensor means that shard and index are not of one checkpoint, or that two
            # shards hold the same name; which of the two would be meant is a guess.
            _fail_if(
                sorted(found.keys() - names),
                f"{folder / file} holds tensors that the index does not place there",
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
    if path.suffix != ARRAYS_SUFFIX:
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
        name: SourceTensor(**vars(array), strides=row_major(array.shape))
        for name, array in arrays.items()
    }


def _read_index(path: Path) -> dict[str, set[str]]:
    """The files that an index names, each with the tensors that it must hold."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise NumpyBloomError(f"{path}: 'weight_map' must be an object of tensor: file")
    files: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not is_file_name(file):
            raise NumpyBloomError(
                f"{path}: '{name}' is said to lie in {file!r}, expected a file name without folders"
            )
        files.setdefault(file, set()).add(name)
    return files


def _fail_if(names: list[str], message: str, most: int = 5) -> None:
    if names:
        raise NumpyBloomError(f"{message}: {listing(names, most=most)}")
