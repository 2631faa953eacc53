"""Where a conversion writes: what it may replace, what is left of a failed one, its memory."""

import errno
import json
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import Checkpoint, stored
from support.conversions import converted, failing, refused, snapshot

from conversion import convert, direct
from conversion.export import export
from conversion.source_tensor import SourceTensor
from conversion.writer import FolderWriter
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.manifest import read_manifest


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_in_a_model_is_not_removed(tmp_path: Path, kind: str) -> None:
    """Somebody's own is found before any work, and only where all of the folder would go."""
    source, target = Checkpoint().write(tmp_path / "source"), tmp_path / "model"
    convert(source, target)
    notes = target / "notes.txt"
    notes.write_text("mine") if kind == "file" else notes.mkdir()
    refused(
        source, f"{target} holds notes.txt, which no conversion left; m", target, overwrite=True
    )
    assert {path.name for path in tmp_path.iterdir()} == {"source", "model"}
    (target / "block_000.safetensors").unlink()
    convert(source, target)  # a repair
    assert notes.exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "source"])
def test_what_is_no_model_is_never_touched(tmp_path: Path, kind: str, overwrite: bool) -> None:
    source = Checkpoint().write(tmp_path / "source")
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("mine")
    elif kind == "source":
        target = source
    else:
        target.mkdir()
        if kind == "folder":
            (target / "mine.txt").write_text("mine")
    before = snapshot(tmp_path)
    refused(source, f"{target} exists and is no converted model", target, overwrite=overwrite)
    assert snapshot(tmp_path) == before


def test_a_model_is_replaced_only_when_told(tmp_path: Path) -> None:
    source, target = Checkpoint().write(tmp_path / "source"), tmp_path / "model"
    convert(source, target)
    before = snapshot(target)
    refused(source, f"{target} exists; give --overwrite", target)
    assert snapshot(target) == before
    Checkpoint(seed=1, generation_config={}).write(source)
    convert(source, target, overwrite=True)
    assert snapshot(target).keys() == {*before, "generation_config.json"}
    assert snapshot(target)["block_000.safetensors"] != before["block_000.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "source"]


@pytest.mark.parametrize("existing", [False, True])
def test_the_last_failure_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, bytes], existing: bool
) -> None:
    """The folder has its name, which cannot be synchronized: that is told, and it is all there."""
    source, target = Checkpoint().write(tmp_path / "source"), tmp_path / "model"
    if existing:
        convert(source, target, "float16")
    told: list[str] = []
    monkeypatch.setattr(os, "fsync", failing(os.fsync, 27, FULL))
    with pytest.raises(NumpyBloomError, match=rf"cannot write {target}: {FULL.strerror}"):
        convert(source, target, overwrite=True, tell=told.append)
    assert len(told) == 1  # the plan: there is nothing to go on with
    assert snapshot(target) == undisturbed
    monkeypatch.undo()
    convert(source, target, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "source"]


def test_a_source_within_its_target_is_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model"
    convert(Checkpoint().write(tmp_path / "source"), target)
    inner = Checkpoint(seed=1).write(target / "inner")
    for source in (inner, Checkpoint().write(target)):
        before = snapshot(tmp_path)
        with pytest.raises(
            NumpyBloomError, match=r"the source .* (is|lies within) .*, which a conversion"
        ):
            convert(source, target, overwrite=True)
        assert snapshot(tmp_path) == before


def test_target_within_the_source(tmp_path: Path) -> None:
    source = Checkpoint().write(tmp_path / "source")
    before = snapshot(source)
    convert(source, source / "numpy" / "model")
    convert(source, tmp_path / "expected")
    assert snapshot(source / "numpy" / "model") == snapshot(tmp_path / "expected")
    assert {name: snapshot(source)[name] for name in before} == before


def test_current_folder_as_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = Checkpoint().write(tmp_path / "source"), tmp_path / "model"
    convert(source, target, "float16")
    monkeypatch.chdir(target)
    convert(source, ".", overwrite=True)
    assert json.loads((target / "manifest.json").read_text())["dtype"] == "float32"


def test_link_as_target(tmp_path: Path) -> None:
    source = Checkpoint().write(tmp_path / "source")
    convert(source, tmp_path / "disk" / "model", "float16")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
    convert(source, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["model"]
    assert json.loads((tmp_path / "link/manifest.json").read_text())["dtype"] == "float32"


JOURNAL = '{"origin": {"options": [], "files": {}}, "files": {}}'
"""What is beside a conversion's own folders until they are gone."""


def test_leftovers_are_replaced(tmp_path: Path) -> None:
    """Of a conversion whose process was killed while it wrote, or while it replaced a model."""
    source, target = Checkpoint().write(tmp_path / "source"), tmp_path / "model"
    for name in ("model", "model.replaced"):
        convert(source, tmp_path / name, "float16")
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial/block_007.safetensors").write_bytes(b"half")
    (tmp_path / "model.partial.json").write_text(JOURNAL)
    convert(source, target, overwrite=True)
    convert(source, tmp_path / "expected")
    assert snapshot(target) == snapshot(tmp_path / "expected")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "model", "source"]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
UNREADABLE = OSError(errno.EIO, os.strerror(errno.EIO))
DAMAGED = NumpyBloomError("damaged")
INTERRUPTIONS = [
    # With two blocks: 28 arrays are read, 12 files (the journal among them, six times) are written.
    *((SourceTensor, "read_rows", call, DAMAGED) for call in (1, 28)),
    *((SourceTensor, "read_rows", call, KeyboardInterrupt()) for call in (1, 15, 28)),
    *((np, "fromfile", call, UNREADABLE) for call in (1, 15, 28)),
    *((os, "fsync", call, FULL) for call in range(1, 25, 3)),
    *((os, "fsync", call, KeyboardInterrupt()) for call in (1, 8)),
    *((os, "replace", call, FULL) for call in range(1, 13, 3)),
    *((os, "write", call, FULL) for call in (1, 2, 9)),
    (os, "rename", 1, FULL),
    (os, "rename", 1, KeyboardInterrupt()),
    (os, "mkdir", 1, FULL),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return snapshot(converted(Checkpoint(), tmp_path_factory.mktemp("undisturbed")))


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(("owner", "name", "call", "error"), INTERRUPTIONS)
def test_interruptions(
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    call: int,
    error: BaseException,
    existing: bool,
) -> None:
    """Wherever a conversion ends, what stood under the target's name stands there still; files that
    are complete have their name and stay; and the next run makes of them what an undisturbed one
    makes."""
    source, target = Checkpoint().write(tmp_path / "source"), tmp_path / "model"
    if existing:
        convert(source, target, "float16")
    before = snapshot(tmp_path)
    monkeypatch.setattr(direct, "BUFFER_BYTES", 4096)  # so that a file needs several
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), call, error))
    with pytest.raises((NumpyBloomError, KeyboardInterrupt)) as raised:
        convert(source, target, overwrite=True)
    if error is FULL:
        assert str(raised.value).startswith(f"cannot write {target}")
        assert str(raised.value).endswith(f": {FULL.strerror}")
    elif error is UNREADABLE:
        assert str(raised.value).startswith("cannot read ")
    else:
        assert raised.value is error
    left = snapshot(tmp_path)
    assert left.items() >= before.items()
    check_whole(left, undisturbed)
    monkeypatch.undo()
    convert(source, target, overwrite=True)
    assert snapshot(target) == undisturbed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "source"]


def check_whole(left: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Whatever has its final name is what it must be."""
    for path, content in left.items():
        folder, _, name = path.rpartition("/")
        if folder == "model.partial" and not name.endswith(".new"):
            assert content == expected[name], name


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()])
def test_a_model_that_cannot_be_replaced_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Between the two renames nothing stands under the name: the old model must come back."""
    source, target = Checkpoint().write(tmp_path / "source"), tmp_path / "model"
    convert(source, target, "float16")
    before = snapshot(tmp_path)
    monkeypatch.setattr(os, "rename", failing(os.rename, 2, error))
    with pytest.raises((NumpyBloomError, KeyboardInterrupt)):
        convert(source, target, overwrite=True)
    assert snapshot(tmp_path).items() >= before.items()
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == sorted(
        name.removeprefix("model/") for name in before if name.startswith("model/")
    )


def test_target_below_a_file(tmp_path: Path) -> None:
    source = Checkpoint().write(tmp_path / "source")
    (tmp_path / "file").write_text("mine")
    refused(source, "cannot write", tmp_path / "file" / "model")
    assert (tmp_path / "file").read_text() == "mine"


def test_full_disk(tmp_path: Path) -> None:
    """A real failing write: the system refuses files of more than 10 kB."""
    resource = pytest.importorskip("resource")
    source = Checkpoint().write(tmp_path / "source")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        refused(source, "embeddings.safetensors: ")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WORKED_OUT = ("bfloat16-packed", "int8", "int4")


@pytest.mark.parametrize(
    ("source_dtype", "dtype"),
    [
        *(("float32", dtype) for dtype in ("bfloat16", *WORKED_OUT)),
        *(("bfloat16", dtype) for dtype in ("keep", "float32")),
    ],
)
def test_memory(tmp_path: Path, source_dtype: str, dtype: str) -> None:
    """A matrix of 64 MB, and a head that is compared with it, pass through less than 50 MB; 70 MB,
    where more is done to them than to round."""
    rows = 64_000_000 // 256 // (4 if source_dtype == "float32" else 2)
    checkpoint = Checkpoint(hidden=256, blocks=1, dtype=source_dtype, config={"vocab_size": rows})
    embeddings = np.broadcast_to(stored(np.ones(256, np.float32), source_dtype), (rows, 256))
    checkpoint.tensors["word_embeddings.weight"] = embeddings
    checkpoint.tensors["lm_head.weight"] = embeddings
    source = checkpoint.write(tmp_path / "source")
    tracemalloc.start()
    try:
        convert(source, tmp_path / "model", dtype, head_dtype=dtype)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (70_000_000 if dtype in WORKED_OUT else 50_000_000)
    shutil.rmtree(tmp_path)  # pytest keeps the folders of its last runs


def test_one_conversion_at_a_time(tmp_path: Path) -> None:
    """The second is told at once; the first goes on."""
    source = Checkpoint().write(tmp_path / "source")
    with FolderWriter(tmp_path / "model", overwrite=False) as writer:
        writer.write_bytes("config.json", b"{}")
        with pytest.raises(
            NumpyBloomError, match=r"another conversion is writing .*model\.partial"
        ):
            convert(source, tmp_path / "model")
        writer.finish(["config.json"], source="first", dtype="float32", head_dtype="float32")
    assert read_manifest(tmp_path / "model")["source"] == "first"


@pytest.mark.parametrize("name", ["model.partial", "model.replaced"])
@pytest.mark.parametrize("file", ["mine", "mine.safetensors", "mine.json", "mine.json/mine"])
def test_foreign_files_beside_the_target_are_kept(tmp_path: Path, name: str, file: str) -> None:
    """Whatever they are called; and what a link leads to."""
    source = Checkpoint().write(tmp_path / "source")
    (tmp_path / name / file).parent.mkdir(parents=True)
    (tmp_path / name / file).write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(NumpyBloomError, match=rf"{name} is in the way.*; no conversion left it"):
        convert(source, tmp_path / "model", overwrite=True)
    assert snapshot(tmp_path) == before
    (tmp_path / name).rename(tmp_path / "elsewhere")
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "model.partial.json").write_text(JOURNAL)
    with pytest.raises(NumpyBloomError, match=rf"{name} is in the way"):
        convert(source, tmp_path / "model", overwrite=True)
    assert (tmp_path / "elsewhere" / file).read_text() == "mine"


@pytest.mark.parametrize("name", ["model.partial", "model.replaced"])
def test_a_source_by_the_name_of_what_is_removed(tmp_path: Path, name: str) -> None:
    """Of a conversion or an export; a journal makes no difference."""
    Checkpoint().write(tmp_path / name)
    convert(tmp_path / name, tmp_path / "other")
    (tmp_path / "model.partial.json").write_text(JOURNAL)
    before = snapshot(tmp_path)
    with pytest.raises(NumpyBloomError, match=rf"source .* is .*{name}, which a conversion to"):
        convert(tmp_path / name, tmp_path / "model", overwrite=True)
    assert snapshot(tmp_path) == before
    shutil.rmtree(tmp_path / name)
    (tmp_path / "other").rename(tmp_path / name)
    before = snapshot(tmp_path)
    with pytest.raises(NumpyBloomError, match=rf"source .* is .*{name}, which a conversion to"):
        export(tmp_path / name, tmp_path / "model")
    assert snapshot(tmp_path) == before


def test_a_replaced_model_that_was_half_deleted(tmp_path: Path) -> None:
    source = Checkpoint().write(tmp_path / "source")
    convert(source, tmp_path / "model")
    (tmp_path / "model.replaced").mkdir()
    (tmp_path / "model.replaced/block_000.safetensors").write_bytes(b"old")
    (tmp_path / "model.partial.json").write_text(JOURNAL)
    convert(source, tmp_path / "model", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "source"]
