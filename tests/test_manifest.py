"""manifest.json: whatever is wrong with it is told by verify, and no model is loaded with it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import Checkpoint
from support.commands import Command
from support.conversions import converted
from support.damages import faults_of, flip, relist, told

from conversion import verify
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.folder import EMBEDDINGS, Folder
from numpy_bloom.weights.manifest import MANIFEST

HIDDEN, BLOCKS, VOCAB = 32, 2, 280


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = Checkpoint(heads=4, hidden=HIDDEN, blocks=BLOCKS, vocab=VOCAB)
    return converted(checkpoint, tmp_path_factory.mktemp("manifest"))


@pytest.fixture
def target(original: Path, tmp_path: Path) -> Path:
    """A copy of a sound model."""
    return Path(shutil.copytree(original, tmp_path / "model"))


SOUND = {"size": 1, "sha256": "0" * 64}
BAD_ENTRIES = [
    *((name, SOUND, "lists") for name in ("../x", "/etc/passwd", "a\\b", "", ".", "..", MANIFEST)),
    *((name, SOUND, "lists") for name in ("a\nb", "\0", "\udcff", "x" * 256)),
    ("block_000.safetensors", 7, "the size of 'block_000.safetensors' is None"),
    ("config.json", {"size": 1}, "the sha256 of 'config.json' is None, expected 64 digits"),
    ("config.json", SOUND | {"sha256": "0" * 63}, "expected 64 digits"),
    ("config.json", SOUND | {"sha256": "G" * 64}, "expected 64 digits"),
    ("config.json", SOUND | {"sha256": "0" * 64 + "\n"}, "expected 64 digits"),
    *(
        ("config.json", SOUND | {"size": size}, f"'config.json' is {size!r}, expected bytes")
        for size in (True, -1, 1.0, "1", None, 1 << 63)
    ),
]


@pytest.mark.parametrize(("name", "entry", "words"), BAD_ENTRIES)
def test_entries_of_the_manifest(target: Path, name: str, entry: Any, words: str) -> None:
    """Each is told by verify, which goes on with the others; a model with one is not loaded."""
    relist(target, lambda files: files.update({name: entry}))
    flip(target / "tokenizer.json", 5)
    faults = faults_of(target)
    assert [fault.file for fault in faults] == [MANIFEST, "tokenizer.json"]
    assert words in faults[0].text
    with pytest.raises(NumpyBloomError) as error:
        Folder.open(target, BLOCKS, HIDDEN, VOCAB)
    for text in (str(error.value), faults[0].text):
        assert text.isprintable()
        assert len(text) < 500
    again = f"convert the checkpoint again: python -m conversion SOURCE {target} --overwrite"
    assert str(error.value) == f"{target}/{faults[0].text}; {again}"


def test_what_the_manifest_says_of_itself(target: Path, command: Command) -> None:
    """It is part of the way out, and may be anything."""
    manifest = json.loads((target / MANIFEST).read_text())
    manifest |= {"source": "a\n" * 1000, "dtype": ["int8"], "head_dtype": "mixed"}
    (target / MANIFEST).write_text(json.dumps(manifest))
    (target / "config.json").unlink()
    result = command(verify, target)
    assert result.code == 1
    assert "run python -m conversion SOURCE " in result.err
    assert ", dtype was ['int8'], head_dtype was 'mixed'), which writes" in result.err
    assert len(result.err) < 1000


def test_version_that_is_true(target: Path) -> None:
    manifest = json.loads((target / MANIFEST).read_text())
    (target / MANIFEST).write_text(json.dumps(manifest | {"format_version": True}))
    with pytest.raises(NumpyBloomError, match="format_version is True, expected 1"):
        told(target)


def test_files_that_are_not_listed_in_the_manifest(target: Path) -> None:
    for name in ("config.json", EMBEDDINGS, "block_000.safetensors"):
        before = (target / MANIFEST).read_bytes()
        relist(target, lambda files, name=name: files.pop(name))
        faults = told(target)
        assert faults == [
            f"'{name}' is not listed in manifest.json",
            f"manifest.json does not list {name}",
        ]
        (target / MANIFEST).write_bytes(before)


def test_every_file_has_its_size_when_a_model_is_loaded(target: Path) -> None:
    names = json.loads((target / MANIFEST).read_text())["files"]
    assert {"config.json", "tokenizer.json", EMBEDDINGS} < set(names)
    for name in names:
        content = (target / name).read_bytes()
        (target / name).write_bytes(content + b" ")
        with pytest.raises(NumpyBloomError, match=f"{name} has .* bytes, expected .*; for a way"):
            Folder.open(target, BLOCKS, HIDDEN, VOCAB)
        (target / name).write_bytes(content)
    Folder.open(target, BLOCKS, HIDDEN, VOCAB)
