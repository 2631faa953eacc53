"""Oddities of checkpoints that do no harm: they are converted to what they would be without."""

import codecs
import json
import os
from pathlib import Path

import pytest
from support.checkpoints import Checkpoint
from support.conversions import snapshot
from support.hostile import Spoil, after, in_place_of, indexed, written

import numpy_bloom
from conversion import convert
from conversion.source import COPIED
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.folder import EMBEDDINGS

SHARD = "a.safetensors"


def _marked(folder: Path) -> None:
    """A byte order mark in all JSON files, as some editors write it."""
    for path in folder.glob("*.json"):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())


def _links(folder: Path) -> None:
    """Links that nobody reads: to nothing, to themselves, out of the folder, to a device."""
    for name, goal in (("a", "none"), ("b", "b"), ("c", "/etc/passwd"), ("d", "/dev/zero")):
        (folder / name).symlink_to(goal)
    (folder / "e").symlink_to(folder.parent)
    os.mkfifo(folder / "f")


HARMLESS: dict[str, Spoil] = {
    "tokenizer-config-infinity": written(
        "tokenizer_config.json", '{"model_max_length": Infinity, "x": [NaN, -Infinity]}'
    ),
    "byte-order-mark": after(
        written("generation_config.json", '{"eos_token_id": 5}'),
        indexed(lambda names: dict.fromkeys(names, SHARD)),
        _marked,
    ),
    "links": _links,
}


@pytest.mark.parametrize("spoil", HARMLESS.values(), ids=HARMLESS.keys())
def test_converted(tmp_path: Path, spoil: Spoil) -> None:
    source = Checkpoint(blocks=1).write(tmp_path / "source")
    convert(source, tmp_path / "sound")
    spoil(source)
    convert(source, tmp_path / "model")
    content, sound = snapshot(tmp_path / "model"), snapshot(tmp_path / "sound")
    assert content[EMBEDDINGS] == sound[EMBEDDINGS]
    for name in content.keys() & {*COPIED}:
        assert content[name] == (source / name).read_bytes()
    with numpy_bloom.load(tmp_path / "model") as model:
        text = "Todos \u4e16 </s>"
        assert model.decode(model.encode(text)) == text


@pytest.mark.parametrize("drops", [False, True])
def test_links_that_are_read(tmp_path: Path, drops: bool) -> None:
    """Those of shards are still looked at, before anything is written or deleted."""
    source = Checkpoint(blocks=1).write(tmp_path / "source")
    indexed(lambda names: dict.fromkeys(names, SHARD))(source)
    (source / SHARD).rename(tmp_path / "outside")
    before = sorted(path.name for path in source.iterdir())
    for goal, told in (
        (tmp_path / "outside", "is a link out of"),
        (tmp_path / "none", "is a link to nothing"),
    ):
        in_place_of(SHARD, lambda path, goal=goal: path.symlink_to(goal))(source)
        with pytest.raises(NumpyBloomError, match=rf"{SHARD} {told}"):
            convert(source, tmp_path / "model", keep_source=not drops)
        assert sorted(path.name for path in source.iterdir()) == sorted([SHARD, *before])
    assert not (tmp_path / "model").exists() and (tmp_path / "outside").exists()


def test_a_nan_that_is_read(tmp_path: Path) -> None:
    """Whoever reads a number sees to it."""
    source = Checkpoint(blocks=1).write(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    for key, value in (("hidden_size", "Infinity"), ("layer_norm_epsilon", "NaN")):
        text = json.dumps(config | {key: 0}).replace(f'"{key}": 0', f'"{key}": {value}')
        (source / "config.json").write_text(text)
        with pytest.raises(NumpyBloomError, match=rf"/config\.json: {key} is (inf|nan), expected"):
            convert(source, tmp_path / "model")
