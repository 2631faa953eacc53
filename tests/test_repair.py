"""A converted model of which files are gone or damaged: the same command writes just these."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import Checkpoint
from support.commands import Command
from support.conversions import failing, snapshot
from support.damages import faults_of, flip

from conversion import __main__ as conversion_command
from conversion import convert, verify
from conversion.source_tensor import SourceTensor
from conversion.writer import FolderWriter
from numpy_bloom.errors import NumpyBloomError, OptionError

BLOCK, OTHER = "block_000.safetensors", "block_001.safetensors"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, `source`, and what it is converted to, `model`."""
    folder = tmp_path_factory.mktemp("repair")
    checkpoint = Checkpoint(dtype="bfloat16", lm_head="different", generation_config={"a": 1})
    convert(checkpoint.write(folder / "source", shards=3), folder / "model")
    return folder


@pytest.fixture
def source(pair: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pair / "source", tmp_path / "source"))


@pytest.fixture
def target(pair: Path, tmp_path: Path) -> Path:
    """A copy of the model."""
    return Path(shutil.copytree(pair / "model", tmp_path / "model"))


def read_for(
    monkeypatch: pytest.MonkeyPatch, source: Path, target: Path, **options: Any
) -> set[str]:
    """Convert; the tensors that were read for it."""
    names = set()
    real = SourceTensor.read_rows

    def read_rows(self: SourceTensor, start: int, stop: int) -> Any:
        names.add(self.name.removeprefix("transformer."))
        return real(self, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(SourceTensor, "read_rows", read_rows)
        convert(source, target, **options)
    return names


@pytest.mark.parametrize("dtype", ["keep", "int4", "bfloat16-packed"])
def test_only_what_is_damaged(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Each file alone; then one that is gone, with one that is cut off and one that differs, and of
    these only the first two are seen without a look at checksums."""
    target = tmp_path / "model"
    convert(source, target, dtype)
    whole = snapshot(target)
    for name in whole.keys() - {"manifest.json"}:
        (target / name).unlink()
        read = read_for(monkeypatch, source, target, dtype=dtype)
        assert snapshot(target) == whole
        if name.startswith("block_"):
            assert len(read) == 12
            assert all(tensor.startswith(f"h.{int(name[6:9])}.") for tensor in read)
        if name.endswith(".json"):
            assert read == set()
    (target / BLOCK).unlink()
    os.truncate(target / "tokenizer.json", 7)
    flip(target / OTHER, -1)
    convert(source, target, dtype)
    assert snapshot(target) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "source"]


def test_as_verify_says(source: Path, tmp_path: Path, command: Command) -> None:
    """The command that it prints does what it says."""
    target = tmp_path / "model"
    convert(source, target, "int8")
    whole = snapshot(target)
    flip(target / BLOCK, -1)
    (target / OTHER).unlink()
    told = command(verify, target).err
    assert f"convert {BLOCK}, {OTHER} again: delete what is there of that" in told
    (target / BLOCK).unlink()
    words = told.split(" run python -m conversion ")[1].split(" (SOURCE was 'source')")[0].split()
    assert command(conversion_command, source, *words[1:]).code == 0
    assert snapshot(target) == whole


def test_what_is_whole_is_not_touched(source: Path, target: Path, tmp_path: Path) -> None:
    """Nor one whose files have their sizes: whether to replace that is for the user to say."""
    for damage in (lambda: None, lambda: flip(target / BLOCK, -1)):
        damage()
        before = snapshot(tmp_path)
        with pytest.raises(NumpyBloomError, match="model exists; give --overwrite"):
            convert(source, target)
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "difference", ["weights", "dtype", "config", "one block less", "no tokenizer"]
)
def test_other_sources_and_options(
    source: Path, target: Path, tmp_path: Path, difference: str
) -> None:
    """A file that comes out otherwise is not put beside the others."""
    damaged, dtype = OTHER, "keep"
    if difference == "weights":  # of the name and the config of the other one
        Checkpoint(dtype="bfloat16", lm_head="different", seed=1).write(source, shards=3)
    elif difference == "dtype":
        dtype = "float32"
    elif difference == "config":
        damaged = "config.json"
        (source / damaged).write_text((source / damaged).read_text() + " ")
    elif difference == "one block less":
        shutil.rmtree(source)
        Checkpoint(blocks=1, dtype="bfloat16", lm_head="different").write(source)
    else:
        damaged = "tokenizer.json"
        (source / damaged).unlink()
    (target / damaged).unlink()
    before = snapshot(tmp_path)
    with pytest.raises(NumpyBloomError) as error:
        convert(source, target, dtype)
    assert str(error.value) == (
        f"{damaged} does not come out of source with the checksum that {target}/manifest.json "
        f"lists; give the SOURCE and options that {target} was made with, or --overwrite to "
        "replace it. It is unchanged"
    )
    assert snapshot(tmp_path) == before


def test_shards_stay(source: Path, target: Path, tmp_path: Path) -> None:
    """What is damaged may come of another checkpoint: then its shards must not be gone."""
    (target / BLOCK).unlink()
    before = snapshot(tmp_path)
    with pytest.raises(OptionError, match=r"is to be repaired.*do without --delete-source"):
        convert(source, target, keep_source=False)
    assert snapshot(tmp_path) == before


def interruptions() -> list[tuple[Any, str, int]]:
    return [
        *((SourceTensor, "read_rows", call) for call in (1, 13)),
        *((os, "fsync", call) for call in range(1, 12, 2)),
        *((os, "replace", call) for call in range(1, 8, 2)),
    ]


@pytest.mark.parametrize(("owner", "name", "call"), interruptions())
def test_interruptions(
    source: Path,
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    call: int,
) -> None:
    """Wherever a repair ends, no file of the model is other than it was written, and the next run
    completes it."""
    whole = snapshot(target)
    (target / BLOCK).unlink()
    (target / OTHER).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(getattr(owner, name), call, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            convert(source, target)
    assert snapshot(target).items() <= whole.items()
    if snapshot(target) != whole:
        convert(source, target)
    assert snapshot(target) == whole
    assert faults_of(target, deep=True) == []


def test_one_at_a_time(source: Path, target: Path) -> None:
    (target / BLOCK).unlink()
    with (
        FolderWriter(target, overwrite=False),
        pytest.raises(NumpyBloomError, match="another conversion is writing"),
    ):
        convert(source, target)


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    """The checkpoint repeats its embeddings as the head; the model has one file for both."""
    source = Checkpoint(lm_head="equal").write(tmp_path / "source")
    convert(source, tmp_path / "model")
    whole = snapshot(tmp_path / "model")
    assert "lm_head.safetensors" not in whole
    (tmp_path / "model" / "embeddings.safetensors").unlink()
    convert(source, tmp_path / "model")
    assert snapshot(tmp_path / "model") == whole
