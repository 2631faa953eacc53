"""Exports that end before they are complete, or must not begin: what is left, and what is told."""

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import Checkpoint
from support.commands import Command, check_failure
from support.conversions import failing, snapshot
from support.exports import SMALL, exported, several

from conversion import convert, direct
from conversion import export as export_command
from conversion.export import export
from numpy_bloom.errors import NumpyBloomError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("owner", "name", "call", "error"),
    [
        *((os, "fsync", call, FULL) for call in range(1, 20, 6)),
        *((os, "fsync", call, KeyboardInterrupt()) for call in (2, 12)),
        *((os, "write", call, FULL) for call in (1, 9)),
        *((os, "replace", call, KeyboardInterrupt()) for call in (1, 8)),
        (os, "rename", 1, FULL),
    ],
)
def test_interruptions(
    tmp_path: Path,
    small_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    call: int,
    error: BaseException,
) -> None:
    """Wherever it ends there is no such folder; the next run makes what an undisturbed one makes,
    and writes no complete shard again."""
    several(monkeypatch)
    export(small_copy, tmp_path / "hf")
    expected = snapshot(tmp_path / "hf")
    shutil.rmtree(tmp_path / "hf")
    with monkeypatch.context() as patch:
        patch.setattr(direct, "BUFFER_BYTES", 4096)  # so that a shard needs several
        patch.setattr(owner, name, failing(getattr(owner, name), call, error))
        with pytest.raises((NumpyBloomError, KeyboardInterrupt)):
            export(small_copy, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    partial = tmp_path / "hf.partial"
    left = list(partial.glob("*.safetensors")) if partial.exists() else []
    assert all(path.read_bytes() == expected[path.name] for path in left)
    journal = tmp_path / "hf.partial.json"
    noted = json.loads(journal.read_text())["files"] if journal.exists() else {}
    times = {name: (partial / name).stat().st_mtime_ns for name in noted}
    export(small_copy, tmp_path / "hf")
    assert snapshot(tmp_path / "hf") == expected
    assert {name: (tmp_path / "hf" / name).stat().st_mtime_ns for name in noted} == times
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "model"]


def refused(model: Path, hf_folder: Path) -> None:
    """What another export has completed is left alone."""
    before = snapshot(hf_folder.parent)
    with pytest.raises(NumpyBloomError, match=f"^{hf_folder}.partial holds .* of a run with other"):
        export(model, hf_folder)
    assert snapshot(hf_folder.parent) == before


def test_what_was_begun_of_another_model(
    tmp_path: Path, small_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that has been converted again meanwhile, or cut into other shards."""
    several(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync, 14, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            export(small_copy, tmp_path / "hf")
    assert list((tmp_path / "hf.partial").glob("*.safetensors"))
    shutil.copytree(tmp_path / "hf.partial", tmp_path / "copy.partial")
    shutil.copy(tmp_path / "hf.partial.json", tmp_path / "copy.partial.json")
    monkeypatch.setattr(export_command, "SHARD_BYTES", 2 * SMALL)
    refused(small_copy, tmp_path / "hf")
    monkeypatch.setattr(export_command, "SHARD_BYTES", SMALL)
    changed = Checkpoint(seed=1)
    convert(changed.write(tmp_path / "source"), small_copy, overwrite=True)
    refused(small_copy, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy.partial")
    export(small_copy, tmp_path / "copy")
    for name, (_, values) in exported(tmp_path / "copy").items():
        np.testing.assert_array_equal(values, changed.tensors[name.removeprefix("transformer.")])


@pytest.mark.parametrize("kind", ["folder", "file", "model"])
def test_what_exists_is_kept(tmp_path: Path, small_copy: Path, command: Command, kind: str) -> None:
    hf_folder = tmp_path / ("model" if kind == "model" else "hf")
    if kind == "folder":
        hf_folder.mkdir()
    elif kind == "file":
        hf_folder.write_text("mine")
    before = snapshot(tmp_path)
    result = command(export_command, small_copy, hf_folder)
    check_failure(result, "export", f"{hf_folder} exists; choose another folder")
    assert snapshot(tmp_path) == before


def test_damaged_models(tmp_path: Path, small_copy: Path) -> None:
    """One bit in any file: nothing is written under the name, and complete shards stay complete."""
    for name in snapshot(small_copy).keys() - {"manifest.json"}:
        path = small_copy / name
        content = path.read_bytes()
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        with pytest.raises(NumpyBloomError) as error:
            export(small_copy, tmp_path / "hf")
        if name != "config.json":  # which may be no JSON any more
            assert str(error.value) == (
                f"{path} is not as it was written; for a way out: "
                f"python -m conversion.verify {tmp_path / 'model'}"
            )
        path.write_bytes(content)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_no_model(tmp_path: Path, command: Command) -> None:
    check_failure(
        command(export_command, tmp_path / "no", tmp_path / "hf"), "export", "not a folder"
    )
    source = Checkpoint().write(tmp_path / "source")
    check_failure(
        command(export_command, source, tmp_path / "hf"), "export", "is not a converted model"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_little_disk(tmp_path: Path, small_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before the first byte: what an export takes must fit, to the byte."""
    checkpoint = Checkpoint()
    needed = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(needed, 1, needed - 1))
    with pytest.raises(
        NumpyBloomError, match=r"free, expected 1 B more; free some, or choose another folder"
    ):
        export(small_copy, tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(needed, 0, needed))
    export(small_copy, tmp_path / "hf")
