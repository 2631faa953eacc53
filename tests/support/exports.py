"""What the tests of exports share: small shards, and a reader that goes by the index."""

import json
from pathlib import Path
from typing import Any

import pytest

from conversion import export as export_command
from support.conversions import read_arrays

SMALL = 20_000
"""Bytes of a shard that make several of a small model."""
Arrays = dict[str, tuple[str, Any]]


def several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_command, "SHARD_BYTES", SMALL)


def exported(folder: Path) -> Arrays:
    """Type and numbers of all tensors, read as the index says."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
        return read_arrays(folder / "model.safetensors")
    content = json.loads(index.read_text())
    places: dict[str, str] = content["weight_map"]
    shards = sorted(set(places.values()))
    count = len(shards)
    assert shards == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    assert {path.name for path in folder.glob("*.safetensors")} == set(shards)
    arrays: Arrays = {}
    for shard in shards:
        found = read_arrays(folder / shard)
        assert found.keys() == {name for name, place in places.items() if place == shard}
        arrays |= found
    assert content["metadata"] == {"total_size": sum(a.nbytes for _, a in arrays.values())}
    return arrays
