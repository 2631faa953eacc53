"""Conversions that are cut off, killed or short of disk, and what the next run makes of it."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import Checkpoint
from support.conversions import failing, snapshot
from support.damages import flip

from conversion import convert
from conversion.source_tensor import SourceTensor
from numpy_bloom.errors import NumpyBloomError

SCRIPT = Path(__file__).parent / "support" / "killed_conversions.py"
DAMAGED = NumpyBloomError("damaged")
FIRST, LAST = (f"model-{number:05d}-of-00004.safetensors" for number in (1, 4))
FILES = ["embeddings.safetensors", "block_000.safetensors", "block_001.safetensors"]


def test_killed_at_many_steps(tmp_path: Path, step: int) -> None:
    """With a source that is deleted on the way."""
    options = {"keep_source": False, "dtype": "int8"}
    Checkpoint(blocks=1).write_in_blocks(tmp_path / "source")
    command = [
        sys.executable,
        str(SCRIPT),
        str(tmp_path),
        "steps",
        str(step),
        "--options",
        json.dumps(options),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kills"] > 40 // step


def in_order() -> Checkpoint:
    """Whose tensors lie in the order of a pass, as in the checkpoints on the hub."""
    checkpoint = Checkpoint()
    order = ["word", "h.0.", "h.1.", "ln_f"]
    checkpoint.tensors = {
        name: array
        for part in order
        for name, array in checkpoint.tensors.items()
        if name.startswith(part)
    }
    return checkpoint


def cut_off(source: Path, monkeypatch: pytest.MonkeyPatch, call: int = 20, **options: Any) -> Path:
    """Convert to `model` up to block 1, whose arrays are the 16th to the 27th that are read."""
    told: list[str] = []
    target = source.with_name("model")
    monkeypatch.setattr(SourceTensor, "read_rows", failing(SourceTensor.read_rows, call, DAMAGED))
    with pytest.raises(NumpyBloomError, match="damaged"):
        convert(source, target, tell=told.append, **options)
    monkeypatch.undo()
    assert told[-1] == (
        f"2 files are complete in {target}.partial; the same command goes on from there"
    )
    return target


def reads(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> set[str]:
    """Convert; the tensors that were read for it."""
    names = set()
    real = SourceTensor.read_rows

    def read_rows(self: SourceTensor, start: int, stop: int) -> Any:
        names.add(self.name.removeprefix("transformer."))
        return real(self, start, stop)

    monkeypatch.setattr(SourceTensor, "read_rows", read_rows)
    convert(source, target, **options)
    monkeypatch.undo()
    return names


def expected(source: Path, **options: Any) -> dict[str, bytes]:
    convert(source, source.with_name("expected"), **options)
    found = snapshot(source.with_name("expected"))
    shutil.rmtree(source.with_name("expected"))
    return found


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["keep", "int4", "bfloat16-packed"])
def test_what_is_complete_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, shards: int
) -> None:
    source = in_order().write(tmp_path / "source", shards=shards)
    whole = expected(source, dtype=dtype)
    call = 20 if dtype == "keep" else 35
    target = cut_off(source, monkeypatch, call, dtype=dtype)
    names = reads(source, target, monkeypatch, dtype=dtype)
    assert {name[:4] for name in names} == {"h.1.", "ln_f"}
    assert snapshot(target) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "source"]


def test_a_damaged_file_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = in_order().write(tmp_path / "source")
    whole = expected(source)
    target = cut_off(source, monkeypatch)
    path = target.with_name("model.partial") / FILES[1]
    flip(path, -1)
    names = reads(source, target, monkeypatch)
    assert {name[:4] for name in names} == {"h.0.", "h.1.", "ln_f"}
    assert snapshot(target) == whole


@pytest.mark.parametrize("change", ["dtype", "head_dtype", "shard", "config"])
def test_what_another_conversion_has_begun_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The shards that it comes of may have been deleted."""
    source = in_order().write(tmp_path / "source")
    target = cut_off(source, monkeypatch)
    options = {change: "bfloat16"} if "dtype" in change else {}
    if change == "shard":
        other = in_order()
        other.tensors["word_embeddings.weight"] *= np.float32(2)
        other.write(source)
        os.utime(source / "model.safetensors", ns=(1, 1))
    elif change == "config":
        os.utime(source / "config.json", ns=(1, 1))
    before, partial = snapshot(tmp_path), target.with_name("model.partial")
    for overwrite in (False, True):
        with pytest.raises(NumpyBloomError, match=f"^{partial} holds 2 complete files of a run"):
            convert(source, target, overwrite=overwrite, **options)
    assert snapshot(tmp_path) == before
    shutil.rmtree(partial)
    names = reads(source, target, monkeypatch, **options)
    assert {name[:4] for name in names} == {"word", "h.0.", "h.1.", "ln_f"}
    assert snapshot(target) == expected(source, **options)


@pytest.mark.parametrize(
    "content",
    [
        '{"mine": 1}',
        '{"origin": {}, "files": {}}',
        '{"origin": {"options": [], "files": [1]}, "files": {}}',
        '{"origin": {"options": [], "files": {}}, "files": {"block_000.safetensors": 5}}',
        '{"origin": {"options": [], "files": {}}, "files": {"block_000.safetensors": {}}}',
        '{"origin": {"options": [], "files": {}}, "files": {"embeddings.safetensors": null}}',
        '{"origin": {"options": [], "files": {}}, "files": {"../x": null}}',
    ],
)
def test_a_foreign_file_in_the_journals_place(tmp_path: Path, content: str) -> None:
    source = in_order().write(tmp_path / "source")
    (tmp_path / "model.partial.json").write_text(content)
    with pytest.raises(NumpyBloomError, match=r"model\.partial\.json is in the way"):
        convert(source, tmp_path / "model")
    assert (tmp_path / "model.partial.json").read_text() == content


def test_shards_are_deleted_when_they_are_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as soon as no file needs it; a run with other options, which would need them, leaves
    what came of them."""
    source = Checkpoint().write_in_blocks(tmp_path / "source")
    whole = expected(source)
    target = cut_off(source, monkeypatch, keep_source=False)
    assert not (source / FIRST).exists() and (source / LAST).exists()
    before = snapshot(tmp_path)
    with pytest.raises(NumpyBloomError, match=r"model.partial holds \d+ complete files of a run"):
        convert(source, target, "float16")
    assert snapshot(tmp_path) == before
    names = reads(source, target, monkeypatch, keep_source=False)
    assert {name[:4] for name in names} == {"h.1.", "ln_f"}
    assert snapshot(target) == whole
    left = {path.name for path in source.iterdir()}
    assert left == {"config.json", "tokenizer.json", "model.safetensors.index.json"}


def test_nothing_is_deleted_that_the_disk_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came of a shard is read back before the shard is deleted."""
    source = Checkpoint().write_in_blocks(tmp_path / "source")
    before = snapshot(source)
    real = os.replace

    def lossy(unfinished: Any, path: Any) -> None:
        if Path(path).name == FILES[0]:
            with Path(unfinished).open("r+b") as file:
                file.write(b"x")
        real(unfinished, path)

    monkeypatch.setattr(os, "replace", lossy)
    with pytest.raises(NumpyBloomError, match=f"{FILES[0]} is not what was written; check"):
        convert(source, tmp_path / "model", keep_source=False)
    monkeypatch.undo()
    assert snapshot(source) == before
    convert(source, tmp_path / "model", keep_source=False)


def test_links_are_not_deleted(tmp_path: Path) -> None:
    """Those of the hub's cache, say."""
    source = tmp_path / "snapshots" / "commit"
    Checkpoint().write(tmp_path / "blobs")
    source.mkdir(parents=True)
    for path in (tmp_path / "blobs").iterdir():
        (source / path.name).symlink_to(Path("../../blobs") / path.name)
    with pytest.raises(NumpyBloomError, match=r"is a link; .* without --delete-source"):
        convert(source, tmp_path / "model", keep_source=False)
    convert(source, tmp_path / "model")


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("dtype", ["keep", "float16", "int8", "int4"])
def test_the_plan_is_right_and_is_asked_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """One byte less than needed is refused before anything is written."""
    source = in_order().write(tmp_path / "source", shards=3)
    size = sum(
        len(c) for name, c in expected(source, dtype=dtype).items() if name != "manifest.json"
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(size, 1, size - 1))
    before = snapshot(tmp_path)
    with pytest.raises(NumpyBloomError, match=r"has \S+ KB free, expected 1 B more; free"):
        convert(source, tmp_path / "model", dtype)
    assert snapshot(tmp_path) == before
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(size, 0, size))
    convert(source, tmp_path / "model", dtype)
