"""What others wrote, read within bounds: regular files only, so many bytes, JSON without tricks."""

import json
import os
import stat
from collections import Counter
from io import BufferedReader
from pathlib import Path
from typing import Any

from numpy_bloom.errors import NumpyBloomError, failing_as

MOST_JSON_BYTES = 1_000_000
"""The index of the largest BLOOM has 70 kB, the manifest of a model of 1,000 blocks 150 kB."""
MOST_DEPTH = 20
"""Of objects and arrays within each other. No file of a checkpoint has more than six."""
MOST_ITEMS = 1_200_000
"""BLOOM's tokenizer.json has a million, counted by commas and brackets."""


def is_file_name(name: str) -> bool:
    """Whether a name can be that of a file in a folder, and of nothing elsewhere."""
    return (
        name.isprintable()  # no surrogates, no NUL
        and 0 < len(name.encode()) < 256
        and name not in (".", "..")
        and not set(name) & set("/\\")
    )


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading, unless it is a folder, a device, or a pipe that might never end.

    Raises:
        OSError: it cannot be opened.
        NumpyBloomError: it is no regular file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise NumpyBloomError(f"cannot read {path}: it is no regular file")
    return path.open("rb")


def read_bounded(path: Path, most: int) -> bytes:
    """All of a file that has no more than so many bytes.

    Raises:
        OSError: it cannot be read.
        NumpyBloomError: it is no regular file, or has more.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise NumpyBloomError(
                f"cannot read {path}: it has {size:,} bytes, expected at most {most:,}"
            )
        return file.read(size)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object.

    Raises:
        NumpyBloomError: the file is missing, unreadable, too large, no JSON (an object has a key
            twice, say), too deep, or no object.
    """
    return read_json_and_bytes(path, MOST_JSON_BYTES)[0]


def read_json_and_bytes(path: Path, most: int) -> tuple[dict[str, Any], bytes]:
    """The same of a file of at most so many bytes, and these."""
    with failing_as(f"cannot read {path}"):
        content = read_bounded(path, most)
    try:
        value = parse_json(content)
    except ValueError as error:
        raise NumpyBloomError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise NumpyBloomError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value, content


def parse_json(content: bytes) -> Any:
    """JSON in UTF-8, with keys that differ.

    A byte order mark, NaN and Infinity, which the standard does not have, are let pass: other tools
    write them, and whoever reads a number sees to it that it is right.

    Raises:
        ValueError: it is not, or it is deep, or has so many parts that they would take many times
            their length in memory.
    """
    items = sum(content.count(character) for character in (b",", b"[", b"{"))
    if items > MOST_ITEMS:
        raise ValueError(f"some {items:,} values, expected at most {MOST_ITEMS:,}")
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError(f"more than {MOST_DEPTH} objects and arrays in each other") from error
    depth, level = 0, _containers([value])
    while level:
        depth += 1
        if depth > MOST_DEPTH:
            raise ValueError(f"more than {MOST_DEPTH} objects and arrays in each other")
        level = [child for parent in level for child in _containers(parent)]
    return value


def _containers(value: dict[str, Any] | list[Any]) -> list[dict[str, Any] | list[Any]]:
    """The objects and arrays right within one."""
    inside = value if isinstance(value, list) else value.values()
    if {dict, list}.isdisjoint(map(type, inside)):  # so for most; soon found out
        return []
    return [child for child in inside if isinstance(child, dict | list)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return values
