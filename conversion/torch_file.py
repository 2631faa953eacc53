"""What `torch.save` writes, read without PyTorch.

The file is a zip archive of uncompressed entries: `<prefix>/data.pkl`, a pickle that describes
the tensors, and `<prefix>/data/<key>` with the bytes of one storage each; several tensors may be
views of one storage (https://docs.pytorch.org/docs/stable/notes/serialization.html).
"""

import io
import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from conversion.source_tensor import SourceTensor, extent
from conversion.torch_pickle import Tensor, read_pickle
from numpy_bloom.errors import NumpyBloomError, failing_as
from numpy_bloom.weights.bounded import open_regular
from numpy_bloom.weights.dtypes import FLOATING, STORED

MOST_PICKLE_BYTES = 1_000_000
"""The state dict of the largest BLOOM, 846 tensors in one file, takes 151 kB."""
MOST_DIRECTORY_BYTES = 1_000_000
"""Of the list of entries, which zipfile reads as a whole: 846 storages take less than 100 kB."""

STORAGE_DTYPES = {
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
}

_LOCAL_HEADER = b"PK\x03\x04"
_LOCAL_HEADER_BYTES = 30
ENCRYPTED = 1
"""The flag of an entry's bit 0."""

# What zipfile, pickletools and the machine for pickles raise on malformed bytes.
_MALFORMED = (
    zipfile.BadZipFile,
    NotImplementedError,
    struct.error,
    ValueError,
    LookupError,
    DeprecationWarning,  # an invalid escape in a string, where warnings are errors
)


def read_torch_file(path: Path) -> dict[str, SourceTensor]:
    """The tensors of a file that holds a state dict (name: tensor), in the order of the file.

    Raises:
        NumpyBloomError: the file is missing, truncated or malformed, is of the format before
            PyTorch 1.6, holds anything but named tensors of a type in `FLOATING`, its pickle asks
            for anything that a state dict does not need, or a tensor reaches beyond its storage or
            is larger than it.
    """
    try:
        with failing_as(f"cannot read {path}"), _Bounded(open_regular(path).detach()) as file:
            if file.read(4) != _LOCAL_HEADER:
                raise NumpyBloomError(
                    f"{path} is not in the zip format that torch.save writes since PyTorch 1.6; "
                    "if PyTorch can load it, save it again with torch.save(state_dict, file), "
                    "otherwise download it again"
                )
            prefix, entries = _entries(file, path)
            state = read_pickle(_content(file, entries[f"{prefix}data.pkl"]), path)
            byteorder = entries.get(f"{prefix}byteorder")
            if byteorder and (byteorder.size != 6 or _content(file, byteorder) != b"little"):
                raise NumpyBloomError(f"{path} is not little-endian, which is all that is read")
    except _MALFORMED as error:
        raise NumpyBloomError(
            f"cannot read {path} ({type(error).__name__}: {error}); "
            "it may be truncated: download it again"
        ) from error
    if not isinstance(state, dict):
        raise NumpyBloomError(f"{path} holds a {type(state).__name__}, expected a dict of tensors")
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise NumpyBloomError(
                f"{path}: '{name}' is a {type(value).__name__}, not a tensor; "
                "save the model's state_dict() alone"
            )
        tensors[name] = _locate(name, value, path, entries.get(f"{prefix}data/{value.storage.key}"))
    return tensors


@dataclass(frozen=True)
class _Entry:
    """The bytes of one zip entry: `size` of them from `offset` in the file."""

    offset: int
    size: int


class _Bounded(io.BufferedReader):
    """A file of which at most so much is read at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MOST_DIRECTORY_BYTES:
            raise ValueError(f"a list of entries of {size:,} bytes")
        return super().read(size)


def _entries(file: BinaryIO, path: Path) -> tuple[str, dict[str, _Entry]]:
    """The prefix of all names (with its slash), and where each entry's bytes lie."""
    entries: dict[str, _Entry] = {}
    with zipfile.ZipFile(file) as archive:
        free = 0
        for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
            if info.filename in entries:
                raise NumpyBloomError(f"{path} has two entries named {info.filename!r}")
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise NumpyBloomError(
                    f"{path}: the entry {info.filename!r} is compressed or its two sizes differ; "
                    "torch.save stores everything as it is"
                )
            if info.flag_bits & ENCRYPTED:
                raise NumpyBloomError(
                    f"{path}: the entry {info.filename!r} is encrypted; torch.save encrypts nothing"
                )
            offset = _data_offset(file, info, path)
            if info.header_offset < free:
                raise NumpyBloomError(
                    f"{path}: the entry {info.filename!r} overlaps the one before it; "
                    "torch.save writes one after the other"
                )
            free = offset + info.file_size
            entries[info.filename] = _Entry(offset, info.file_size)
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise NumpyBloomError(
            f"{path} has {len(pickles)} entries named <prefix>/data.pkl, expected one; "
            "it was not written by torch.save"
        )
    if entries[pickles[0]].size > MOST_PICKLE_BYTES:
        raise NumpyBloomError(
            f"{path}: data.pkl has {entries[pickles[0]].size:,} bytes, expected at most "
            f"{MOST_PICKLE_BYTES:,} for a description of tensors"
        )
    return pickles[0].removesuffix("data.pkl"), entries


def _data_offset(file: BinaryIO, info: zipfile.ZipInfo, path: Path) -> int:
    """Where an entry's bytes begin: after its local header, which alone tells its padding."""
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    if len(header) < _LOCAL_HEADER_BYTES or not header.startswith(_LOCAL_HEADER):
        raise NumpyBloomError(f"{path}: the entry {info.filename!r} has no valid local header")
    name_length, extra_length = struct.unpack_from("<HH", header, 26)
    offset = int(info.header_offset + _LOCAL_HEADER_BYTES + name_length + extra_length)
    if offset + info.file_size > path.stat().st_size:
        raise NumpyBloomError(f"{path}: the entry {info.filename!r} reaches beyond the file's end")
    return offset


def _content(file: BinaryIO, entry: _Entry) -> bytes:
    file.seek(entry.offset)
    return file.read(entry.size)


def _locate(name: str, tensor: Tensor, path: Path, entry: _Entry | None) -> SourceTensor:
    """Check a described tensor against its storage, and the storage against the archive's entry."""
    storage, size, stride = tensor.storage, tensor.size, tensor.stride
    dtype = STORAGE_DTYPES.get(storage.type)
    if dtype is None:
        raise NumpyBloomError(
            f"'{name}' in {path} is stored as {storage.type!r}; expected {', '.join(FLOATING)}"
        )
    itemsize = STORED[dtype].itemsize
    if entry is None or entry.size != storage.numel * itemsize:
        found = "is missing" if entry is None else f"has {entry.size:,} bytes"
        raise NumpyBloomError(
            f"'{name}' in {path}: its storage data/{storage.key} {found}, expected "
            f"{storage.numel * itemsize:,} bytes; download the file again"
        )
    if tensor.offset + extent(size, stride) > storage.numel:
        raise NumpyBloomError(
            f"'{name}' in {path} does not lie within its storage of {storage.numel:,} elements: "
            f"offset {tensor.offset}, size {size}, stride {stride}"
        )
    if math.prod(size) > storage.numel:
        raise NumpyBloomError(
            f"'{name}' in {path} has size {size}, more than the {storage.numel:,} elements of its "
            "storage, which it repeats; save a contiguous copy"
        )
    return SourceTensor(path, name, dtype, size, entry.offset + tensor.offset * itemsize, stride)
