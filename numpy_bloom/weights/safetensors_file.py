"""Array files: plain safetensors (https://huggingface.co/docs/safetensors), read and begun."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from numpy_bloom.errors import NumpyBloomError, failing_as
from numpy_bloom.weights.bounded import open_regular, parse_json
from numpy_bloom.weights.dtypes import SAFETENSORS_CODES, STORED, Stored
from numpy_bloom.weights.manifest import see_verify

ALIGNMENT = 4096
"""Array data begins at a multiple of this many bytes, so that direct reads need no detour."""

MOST_HEADER_BYTES = 1_000_000
"""That of all 846 tensors of the largest BLOOM in one file would have 110 kB."""

Spec = tuple[str, tuple[int, ...]]
"""Dtype (a name of `STORED`) and shape of an array."""


def array_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """How many bytes the numbers of an array take."""
    return math.prod(shape) * STORED[dtype].itemsize


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
        return array_bytes(self.dtype, self.shape)

    def __str__(self) -> str:
        return f"'{self.name}' in {self.path}"


def read_header(path: Path) -> dict[str, StoredArray]:
    """The arrays of a safetensors file by name, in the order in which they lie in it.

    Raises:
        NumpyBloomError: the file is missing, truncated or no safetensors file, its header is too
            large or has a name twice, or it holds a type that is not in `STORED`. (The safetensors
            library sees that the arrays fill the file without gaps, one after the other.)
    """
    dtypes = {code: dtype for dtype, code in SAFETENSORS_CODES.items()}
    arrays = {}
    try:
        with failing_as(f"cannot read {path}"):
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
    except (OSError, ValueError, SafetensorError) as error:
        raise NumpyBloomError(f"cannot read {path}: {error}") from error
    return arrays


def _data_start(path: Path) -> int:
    """Offset of the first array: eight bytes tell the length of the header that they precede."""
    with open_regular(path) as file:
        beginning = file.read(8)
        if len(beginning) < 8:
            raise ValueError(
                f"it ends at byte {len(beginning)}, within its header; download it again, or "
                "convert it again if it was converted"
            )
        length = int.from_bytes(beginning, "little")
        if length > MOST_HEADER_BYTES:
            raise ValueError(
                f"its header is said to have {length:,} bytes, "
                f"expected at most {MOST_HEADER_BYTES:,}"
            )
        parse_json(file.read(length))
    return 8 + length


def header_bytes(arrays: Mapping[str, Spec], metadata: Mapping[str, str] | None = None) -> bytes:
    """The beginning of a safetensors file whose arrays follow in this order.

    Padded with spaces, as the format allows, so that the data begins at a multiple of `ALIGNMENT`.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape) in arrays.items():
        begin, end = end, end + array_bytes(dtype, shape)
        offsets = [begin, end]
        header[name] = {
            "dtype": SAFETENSORS_CODES[dtype],
            "shape": list(shape),
            "data_offsets": offsets,
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def read_stored(array: StoredArray) -> Stored:
    """Read a small array whole, in its stored type.

    Raises:
        NumpyBloomError: the file cannot be read or is shorter than its header says.
    """
    with failing_as(f"cannot read {array}"):
        values = np.fromfile(
            array.path, STORED[array.dtype], count=math.prod(array.shape), offset=array.offset
        )
    if values.size != math.prod(array.shape):
        raise NumpyBloomError(f"{array} is truncated{see_verify(array.path.parent)}")
    return values.reshape(array.shape)
