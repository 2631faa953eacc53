"""Writes files in the zip format of `torch.save` without PyTorch, well-formed or not."""

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import encode_long
from typing import Any


@dataclass(frozen=True)
class Global:
    """A dotted name that the pickle mentions."""

    name: str


@dataclass(frozen=True)
class Call:
    """A function that the pickle asks to have called."""

    function: Any
    arguments: Any


@dataclass(frozen=True)
class Persistent:
    """A reference to something outside the pickle."""

    id: Any


def opcodes(value: Any) -> bytes:  # noqa: PLR0911 - one for each type
    """The instructions of pickle protocol 2 that push `value`; bytes are taken as instructions."""
    match value:
        case bytes():
            return value
        case None | bool():
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            encoded = encode_long(value)
            return b"\x8a" + bytes([len(encoded)]) + encoded
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        case dict():
            items = b"".join(opcodes(key) + opcodes(item) for key, item in value.items())
            return b"}(" + items + b"u"
        case Global(name):
            module, _, attribute = name.rpartition(".")
            return f"c{module}\n{attribute}\n".encode()
        case Call(function, arguments):
            return opcodes(function) + opcodes(arguments) + b"R"
        case Persistent(id_):
            return opcodes(id_) + b"Q"
    raise TypeError(type(value))


def storage(key: str, numel: int, kind: str = "Float") -> Persistent:
    """The reference to the storage `data/<key>`."""
    return Persistent(("storage", Global(f"torch.{kind}Storage"), key, "cpu", numel))


def tensor(
    storage: Any, size: tuple[int, ...], stride: tuple[int, ...], offset: Any = 0, *metadata: Any
) -> Call:
    """A view of a storage; offset and strides in elements."""
    hooks = Call(Global("collections.OrderedDict"), ())
    arguments = (storage, offset, size, stride, False, hooks, *metadata)
    return Call(Global("torch._utils._rebuild_tensor_v2"), arguments)


def write(path: Path, value: Any, storages: Mapping[str, bytes] = {}, **entries: bytes) -> Path:
    """A file of `value`, an object for `opcodes`, with its storages and other entries by name."""
    program = b"\x80\x02" + opcodes(value) + b"."
    contents = {"data.pkl": program, "byteorder": b"little", "version": b"3\n", **entries}
    contents |= {f"data/{key}": content for key, content in storages.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(f"archive/{name}", content)
    return path
