"""The folder of a converted model: which files it has, what is in them, and how to read them.

Every array file is plain safetensors (https://huggingface.co/docs/safetensors), with the array
names of the Hugging Face checkpoint. docs/format.md describes the format for other tools.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.dtypes import SAFETENSORS_CODES, STORED, Stored

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
EMBEDDINGS = "embeddings.safetensors"
FINAL_LAYERNORM = "final_layernorm.safetensors"
LM_HEAD = "lm_head.safetensors"
ALIGNMENT = 4096
"""Array data begins at a multiple of this many bytes, so that direct reads need no detour."""

Shapes = dict[str, tuple[int, ...]]


def block_file(block: int) -> str:
    """Name of the file that holds one block, counted from 0."""
    return f"block_{block:03d}.safetensors"


def block_shapes(hidden_size: int) -> Shapes:
    """Names and shapes of the 12 arrays of a block, in the order in which a pass uses them."""
    h = hidden_size
    return {
        "input_layernorm.weight": (h,),
        "input_layernorm.bias": (h,),
        "self_attention.query_key_value.weight": (3 * h, h),
        "self_attention.query_key_value.bias": (3 * h,),
        "self_attention.dense.weight": (h, h),
        "self_attention.dense.bias": (h,),
        "post_attention_layernorm.weight": (h,),
        "post_attention_layernorm.bias": (h,),
        "mlp.dense_h_to_4h.weight": (4 * h, h),
        "mlp.dense_h_to_4h.bias": (4 * h,),
        "mlp.dense_4h_to_h.weight": (h, 4 * h),
        "mlp.dense_4h_to_h.bias": (h,),
    }


class ArrayFile(NamedTuple):
    """One file of array data.

    Attributes:
        name: of the file.
        prefix: what the arrays' names begin with in a checkpoint but not in this file, so that
            all blocks' files look alike: `h.3.`, or nothing.
        shapes: of the arrays it must hold.
    """

    name: str
    prefix: str
    shapes: Shapes


def model_files(blocks: int, hidden_size: int, vocab_size: int) -> list[ArrayFile]:
    """Every array file of a model, in the order of a pass.

    The file of an untied head, `head_file`, is not among them: few checkpoints have one.
    """
    h = hidden_size
    embeddings: Shapes = {
        "word_embeddings.weight": (vocab_size, h),
        "word_embeddings_layernorm.weight": (h,),
        "word_embeddings_layernorm.bias": (h,),
    }
    final_layernorm: Shapes = {"ln_f.weight": (h,), "ln_f.bias": (h,)}
    return [
        ArrayFile(EMBEDDINGS, "", embeddings),
        *(ArrayFile(block_file(i), f"h.{i}.", block_shapes(h)) for i in range(blocks)),
        ArrayFile(FINAL_LAYERNORM, "", final_layernorm),
    ]


def head_file(hidden_size: int, vocab_size: int) -> ArrayFile:
    """The file of a head that is not the word embeddings."""
    return ArrayFile(LM_HEAD, "", {"lm_head.weight": (vocab_size, hidden_size)})


@dataclass(frozen=True)
class StoredArray:
    """Where one array lies: `nbytes` bytes of `path` from `offset`, row-major, of type `dtype`."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * STORED[self.dtype].itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one row along the first axis."""
        return math.prod(self.shape[1:]) * STORED[self.dtype].itemsize

    def __str__(self) -> str:
        return f"'{self.name}' in {self.path}"


def read_header(path: Path) -> dict[str, StoredArray]:
    """The arrays of a safetensors file by name, in the order in which they lie in it.

    Raises:
        NumpyBloomError: the file is missing, truncated or no safetensors file (the safetensors
            library checks the header), or it holds a type that is not in `STORED`.
    """
    dtypes = {code: dtype for dtype, code in SAFETENSORS_CODES.items()}
    arrays = {}
    try:
        offset = _data_start(path)
        with safe_open(path, framework="numpy") as file:
            for name in file.offset_keys():
                code = file.get_slice(name).get_dtype()
                if code not in dtypes:
                    raise NumpyBloomError(
                        f"'{name}' in {path} has type {code}; expected one of {', '.join(dtypes)}"
                    )
                shape = tuple(file.get_slice(name).get_shape())
                arrays[name] = StoredArray(path, name, dtypes[code], shape, offset)
                offset += arrays[name].nbytes
    except (OSError, SafetensorError) as error:
        raise NumpyBloomError(f"cannot read {path}: {error}") from error
    return arrays


def _data_start(path: Path) -> int:
    """Offset of the first array: eight bytes tell the length of the header that they precede."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def header_bytes(arrays: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The beginning of a safetensors file whose arrays (name: dtype, shape) follow in this order.

    Padded with spaces, as the format allows, so that the data begins at a multiple of `ALIGNMENT`.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in arrays.items():
        begin, end = end, end + math.prod(shape) * STORED[dtype].itemsize
        offsets = [begin, end]
        header[name] = {
            "dtype": SAFETENSORS_CODES[dtype],
            "shape": list(shape),
            "data_offsets": offsets,
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object.

    Raises:
        NumpyBloomError: the file is missing, unreadable, no JSON, or no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise NumpyBloomError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise NumpyBloomError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def check_shapes(found: Shapes, expected: Shapes, path: Path) -> None:
    """Compare the arrays that `path` holds with those it must hold.

    Raises:
        NumpyBloomError: names what is missing, unknown or of another shape.
    """
    problems = [f"'{name}' is missing" for name in expected if name not in found]
    problems += [f"'{name}' is unknown" for name in found if name not in expected]
    problems += [
        f"'{name}' has shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise NumpyBloomError(f"{path}: {_listing(problems)}")


def _listing(items: Iterable[str], most: int = 5) -> str:
    """Join items for one line of an error; many are cut short with their number."""
    items = list(items)
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + rest


@dataclass(frozen=True)
class Folder:
    """An opened converted model: the place of each array, checked against the config's sizes.

    Attributes:
        path: the folder.
        arrays: for each file of `model_files` (and `LM_HEAD`, if the head is untied) its arrays.
        manifest: the parsed manifest.json.
    """

    path: Path
    arrays: dict[str, dict[str, StoredArray]]
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path, blocks: int, hidden_size: int, vocab_size: int) -> "Folder":
        """Read all headers and compare sizes, names and shapes.

        Raises:
            NumpyBloomError: the folder is no complete converted model.
        """
        manifest = read_manifest(path)
        files = model_files(blocks, hidden_size, vocab_size)
        if LM_HEAD in manifest["files"]:
            files.append(head_file(hidden_size, vocab_size))
        arrays = {}
        for file in files:
            _check_size(path / file.name, manifest)
            arrays[file.name] = read_header(path / file.name)
            shapes = {name: array.shape for name, array in arrays[file.name].items()}
            check_shapes(shapes, file.shapes, path / file.name)
        return cls(path, arrays, manifest)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a converted folder.

    Raises:
        NumpyBloomError: there is none, or it is of another format version.
    """
    if not path.is_dir():
        raise NumpyBloomError(
            f"{path} is not a folder; expected a converted model, which is made of a "
            "Hugging Face checkpoint with: python -m conversion SOURCE TARGET"
        )
    if not (path / MANIFEST).is_file():
        raise NumpyBloomError(
            f"{path} is not a converted model (it has no {MANIFEST}); "
            f"convert a Hugging Face checkpoint with: python -m conversion {path} TARGET"
        )
    manifest = read_json(path / MANIFEST)
    if manifest.get("format_version") != FORMAT_VERSION:
        raise NumpyBloomError(
            f"{path / MANIFEST}: format_version is {manifest.get('format_version')!r}, expected "
            f"{FORMAT_VERSION}; convert the checkpoint again"
        )
    if not isinstance(manifest.get("files"), dict):
        raise NumpyBloomError(
            f"{path / MANIFEST}: 'files' is missing; convert the checkpoint again"
        )
    return manifest


def _check_size(file: Path, manifest: Mapping[str, Any]) -> None:
    entry = manifest["files"].get(file.name)
    if not isinstance(entry, dict) or not isinstance(entry.get("size"), int):
        raise NumpyBloomError(
            f"{file.parent / MANIFEST} does not list {file.name}; convert the checkpoint again"
        )
    size = file.stat().st_size if file.is_file() else None
    if size != entry["size"]:
        found = "is missing" if size is None else f"has {size:,} bytes, expected {entry['size']:,}"
        raise NumpyBloomError(f"{file} {found}; convert the checkpoint again")


def read_stored(array: StoredArray) -> Stored:
    """Read a small array whole, in its stored type.

    Raises:
        NumpyBloomError: the file cannot be read or is shorter than its header says.
    """
    try:
        values = np.fromfile(
            array.path, STORED[array.dtype], count=math.prod(array.shape), offset=array.offset
        )
    except OSError as error:
        raise NumpyBloomError(f"cannot read {array}: {error}") from error
    if values.size != math.prod(array.shape):
        raise NumpyBloomError(f"{array} is truncated; convert the checkpoint again")
    return values.reshape(array.shape)
