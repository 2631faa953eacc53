"""Hostile weights: safetensors files, zip files and pickles that lie or ask for too much."""

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import torch_zip
from support.hostile import Hostile, Spoil, in_place_of, written
from support.torch_zip import Global, storage, tensor

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"
NUMBERS = bytes(48)


def header(text: str, data: bytes = NUMBERS) -> Spoil:
    """A safetensors file with this header."""
    return written(SAFETENSORS, len(text).to_bytes(8, "little") + text.encode() + data)


def arrays(**places: tuple[list[int], list[int]]) -> Spoil:
    """A safetensors file with arrays of these shapes and offsets."""
    entries = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        for name, (shape, offsets) in places.items()
    }
    return header(json.dumps(entries))


def long_header(folder: Path) -> None:
    size = 90_000_000
    with (folder / SAFETENSORS).open("wb") as file:
        file.write(size.to_bytes(8, "little") + b"{")
        file.truncate(8 + size)


def pickled(value: Any, **entries: bytes) -> Spoil:
    """A .bin file of this value, with a storage of 12 numbers."""

    def spoil(folder: Path) -> None:
        (folder / SAFETENSORS).unlink()
        torch_zip.write(folder / BIN, value, {"0": NUMBERS}, **entries)

    return spoil


def viewed(numel: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Spoil:
    return pickled({"ln_f.weight": tensor(storage("0", numel), size, stride)})


def patched(change: Callable[[bytearray, int, int], object]) -> Spoil:
    """A .bin file; `change` gets its bytes and where directory entry and local header of data/0
    begin."""

    def spoil(folder: Path) -> None:
        pickled({})(folder)
        content = bytearray((folder / BIN).read_bytes())
        local = content.index(b"PK\3\4", content.index(b"archive/version"))
        central = content.index(b"PK\1\2", content.rindex(b"archive/version"))
        change(content, central, local)
        (folder / BIN).write_bytes(content)

    return spoil


def put(content: bytearray, place: int, form: str, number: int) -> None:
    struct.pack_into(f"<{form}", content, place, number)


def zipped(*names: str, compression: int = zipfile.ZIP_STORED) -> Spoil:
    """A zip file of empty pickles."""

    def spoil(folder: Path) -> None:
        (folder / SAFETENSORS).unlink()
        with zipfile.ZipFile(folder / BIN, "w", compression) as archive:
            for name in names:
                archive.writestr(name, b"\x80\x02}.")

    return spoil


def two_names(folder: Path) -> None:
    zipped("a/data.pkl", "b/data.pkl")(folder)
    content = (folder / BIN).read_bytes()
    (folder / BIN).write_bytes(content.replace(b"b/data.pkl", b"a/data.pkl"))


def long_directory(folder: Path) -> None:
    """A directory of two GB in a file of three, most of which is not on the disk."""
    (folder / SAFETENSORS).unlink()
    with (folder / BIN).open("wb") as file:
        file.write(b"PK\3\4")
        file.seek(3_000_000_000)
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 9, 9, 2 * 10**9, 10**9, 0))


TORCH = "cannot read {folder}/" + BIN
AGAIN = "it may be truncated: download it again"
REFUSES = "refuses to load {folder}/" + BIN + ": its pickle asks for "
ONLY = "; a checkpoint needs only tensors, as torch.save(model.state_dict(), file) writes them"
TENSORS = "cannot read {folder}/" + SAFETENSORS + ": "
HEADER = "Error while deserializing header: "
STRING = b"X" + struct.pack("<I", 400_000) + b"torch." + b"a" * 399_994
LONG_NAME = STRING + b"q\0" + torch_zip.opcodes("Storage") + b"q\1" + b"h\0h\1\x93" * 100_000

HEADERS = [
    Hostile(
        "header-none",
        "nothing at all",
        written("model.safetensors", b""),
        "cannot read {folder}/model.safetensors: it ends at byte 0, within its header; download it "
        "again, or convert it again if it was converted",
    ),
    Hostile(
        "header-length",
        "a header longer than any file",
        written(SAFETENSORS, b"\xff" * 7 + b"\x7f{}"),
        TENSORS + "its header is said to have 9,223,372,036,854,775,807 bytes, expected at most "
        "1,000,000",
    ),
    Hostile(
        "header-large",
        "a header of 90 MB, just what the safetensors library takes",
        long_header,
        TENSORS + "its header is said to have 90,000,000 bytes, expected at most 1,000,000",
    ),
    Hostile(
        "header-name-twice",
        "an array at two places",
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}'),
        TENSORS + "the key 'a' occurs twice in one object",
    ),
    Hostile(
        "header-deep",
        "metadata, 5,000 objects in each other",
        header('{"__metadata__": ' + '{"a":' * 5000 + "0" + "}" * 5001),
        TENSORS + "more than 20 objects and arrays in each other",
    ),
    Hostile(
        "header-overlap",
        "two arrays that share bytes",
        arrays(a=([6], [0, 24]), b=([9], [12, 48])),
        TENSORS + HEADER + "invalid offset for tensor `b`",
    ),
    Hostile(
        "header-hole",
        "bytes that belong to no array",
        arrays(a=([3], [0, 12]), b=([6], [24, 48])),
        TENSORS + HEADER + "invalid offset for tensor `b`",
    ),
    Hostile(
        "header-beyond",
        "an array beyond the end of the file",
        arrays(a=([13], [0, 52])),
        TENSORS + HEADER + "incomplete metadata, file not fully covered",
    ),
    Hostile(
        "header-overflow",
        "a size that is small modulo 2**64",
        arrays(a=([2**62, 4], [0, 48])),
        TENSORS + HEADER + "overflow computing buffer size from shape and/or element type",
    ),
    Hostile(
        "header-empty-axis",
        "a huge array of no bytes",
        arrays(**{"ln_f.weight": ([0, 2**60], [0, 0]), "b": ([12], [0, 48])}),
        "{folder}: 'word_embeddings.weight' is missing; 'word_embeddings_layernorm.weight' is "
        "missing; 'word_embeddings_layernorm.bias' is missing; 'h.0.input_layernorm.weight' is "
        "missing; 'h.0.input_layernorm.bias' is missing and 13 more",
    ),
    Hostile(
        "header-type",
        "integers",
        header('{"a": {"dtype": "I64", "shape": [6], "data_offsets": [0, 48]}}'),
        "'a' in {folder}/model.safetensors has type I64; expected one of F32, F16, BF16, I8, U8, "
        "U16, U64",
    ),
    Hostile(
        "weights-pipe",
        "weights from a pipe",
        in_place_of(SAFETENSORS, os.mkfifo),
        "cannot read {folder}/model.safetensors: it is no regular file",
    ),
]

PICKLES = [
    Hostile(
        "pickle-runs",
        "a shell command",
        pickled(b"cos\nsystem\n(X\4\0\0\0truetR"),
        REFUSES + "'os.system'" + ONLY,
    ),
    Hostile(
        "pickle-name",
        "40 GB of names, put together of two strings 100,000 times",
        pickled(LONG_NAME),
        REFUSES + "'torch." + "a" * 194 + "'" + ONLY,
    ),
    Hostile(
        "pickle-deep-key",
        "a key of 100,000 tuples in each other, which crashes hash()",
        pickled(b"}" + b")" + b"\x85" * 100_000 + b"Ns"),
        REFUSES + "something other than a dict with names as keys" + ONLY,
    ),
    Hostile(
        "pickle-number",
        "a storage of 2**2000 numbers",
        viewed(2**2000, (1,), (1,)),
        REFUSES + "an object by a persistent id that names no storage" + ONLY,
    ),
    Hostile(
        "pickle-large",
        "a pickle of ten MB",
        pickled({}, **{"data.pkl": b"N" * 10_000_000}),
        "{folder}/" + BIN + ": data.pkl has 10,000,000 bytes, expected at most 1,000,000 for a "
        "description of tensors",
    ),
    Hostile(
        "pickle-repeats",
        "a matrix of 2**80 numbers, all of them the same four bytes",
        viewed(12, (2**40, 2**40), (0, 0)),
        "'ln_f.weight' in {folder}/" + BIN + " has size (1099511627776, 1099511627776), more than "
        "the 12 elements of its storage, which it repeats; save a contiguous copy",
    ),
    Hostile(
        "pickle-beyond",
        "a tensor beyond the end of its storage",
        viewed(12, (16,), (1,)),
        "'ln_f.weight' in {folder}/" + BIN + " does not lie within its storage of 12 elements: "
        "offset 0, size (16,), stride (1,)",
    ),
    Hostile(
        "pickle-storage",
        "a storage larger than its entry",
        viewed(2**40, (16,), (1,)),
        "'ln_f.weight' in {folder}/" + BIN + ": its storage data/0 has 48 bytes, expected "
        "4,398,046,511,104 bytes; download the file again",
    ),
    Hostile(
        "pickle-function",
        "an allowed function, with arguments that make it do something else",
        pickled({"a": torch_zip.Call(Global("collections.OrderedDict"), ({"b": 1},))}),
        REFUSES + "a call of 'collections.OrderedDict' with unexpected arguments" + ONLY,
    ),
]

ZIPS = [
    Hostile(
        "zip-twice",
        "two entries of one name, of which two readers may see two",
        two_names,
        "{folder}/" + BIN + " has two entries named 'a/data.pkl'",
    ),
    Hostile(
        "zip-compressed",
        "an entry that grows when it is read",
        zipped("a/data.pkl", compression=zipfile.ZIP_DEFLATED),
        "{folder}/" + BIN + ": the entry 'a/data.pkl' is compressed or its two sizes differ; "
        "torch.save stores everything as it is",
    ),
    Hostile(
        "zip-overlap",
        "an entry within another",
        patched(lambda zip, central, local: put(zip, central + 42, "I", 0)),
        "{folder}/" + BIN + ": the entry 'archive/data/0' overlaps the one before it; torch.save "
        "writes one after the other",
    ),
    Hostile(
        "zip-encrypted",
        "an entry that is encrypted",
        patched(lambda zip, central, local: put(zip, central + 8, "H", 1)),
        "{folder}/" + BIN + ": the entry 'archive/data/0' is encrypted; torch.save encrypts "
        "nothing",
    ),
    Hostile(
        "zip-size",
        "an entry larger than the file",
        patched(lambda zip, central, local: put(zip, central + 20, "Q", 0x7FFFFFFF * (2**32 + 1))),
        "{folder}/" + BIN + ": the entry 'archive/data/0' reaches beyond the file's end",
    ),
    Hostile(
        "zip-directory",
        "a list of entries of two GB",
        long_directory,
        TORCH + " (ValueError: a list of entries of 2,000,000,000 bytes); " + AGAIN,
    ),
    Hostile(
        "zip-none",
        "a bare pickle, as before the zip format",
        lambda folder: (
            (folder / SAFETENSORS).unlink(),
            (folder / BIN).write_bytes(b"cos\nsystem\n(X\4\0\0\0truetR."),
        ),
        "{folder}/" + BIN + " is not in the zip format that torch.save writes since PyTorch 1.6; "
        "if PyTorch can load it, save it again with torch.save(state_dict, file), otherwise "
        "download it again",
    ),
]
