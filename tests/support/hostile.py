"""How the corpus of hostile checkpoints is made: each in a few lines, with the line that it gets.

Every entry spoils a sound checkpoint of one safetensors file. `test_hostile.py` converts them all
and holds docs/hostile.md to the lists: hostile_json.py, hostile_tokenizers.py, hostile_arrays.py.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Spoil = Callable[[Path], object]


@dataclass(frozen=True)
class Hostile:
    """A spoiled checkpoint.

    Attributes:
        name: of the entry.
        what: it does or asks for, in a few words.
        spoil: changes the checkpoint in a folder.
        line: the whole error, with {folder} where the folder's path stands.
    """

    name: str
    what: str
    spoil: Spoil
    line: str


def written(name: str, content: str | bytes) -> Spoil:
    """Replace a file."""
    return lambda folder: (folder / name).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def edited(name: str, change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Change the object in a JSON file."""

    def spoil(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return spoil


def updated(name: str, **values: Any) -> Spoil:
    """Set some keys of the object in a JSON file."""
    return edited(name, lambda found: found.update(values))


def sparse(name: str, size: int) -> Spoil:
    """Make a file huge; it takes no space on the disk."""

    def spoil(folder: Path) -> None:
        (folder / name).touch()
        os.truncate(folder / name, size)

    return spoil


def in_place_of(name: str, make: Callable[[Path], object]) -> Spoil:
    """Put something else under a file's name."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return spoil


def indexed(weight_map: Callable[[list[str]], Any]) -> Spoil:
    """An index in place of the one file, which is now called a.safetensors.

    Args:
        weight_map: makes what is in the index of the names of all tensors.
    """

    def spoil(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        names = list(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]))[1:]
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map(names)}))

    return spoil


def after(*spoils: Spoil) -> Spoil:
    """One after the other."""
    return lambda folder: [spoil(folder) for spoil in spoils]


CONFIG, TOKENIZER, INDEX = "config.json", "tokenizer.json", "model.safetensors.index.json"
GENERATION, TOKENS = "generation_config.json", "special_tokens_map.json"
DEEP = "more than 20 objects and arrays in each other"
