"""`python -m conversion.verify`: whatever is done to a converted folder is told by name."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import Checkpoint
from commands import Command, check_failure, runner

from conversion import convert, verify
from conversion.verify import find_faults
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.folder import MANIFEST, Folder
from numpy_bloom.weights.formats import FORMATS

HIDDEN, BLOCKS, VOCAB = 32, 2, 280


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = Checkpoint(heads=4, hidden=HIDDEN, blocks=BLOCKS, vocab=VOCAB, seed=3)
    return checkpoint.write(tmp_path_factory.mktemp("verify"))


@pytest.fixture
def target(source: Path, tmp_path: Path) -> Path:
    convert(source, tmp_path / "model")
    return tmp_path / "model"


def vouch_for(target: Path) -> None:
    """Bring sizes and checksums in the manifest up to date with the files."""
    manifest = json.loads((target / MANIFEST).read_text())
    for name in manifest["files"]:
        content = (target / name).read_bytes()
        checksum = hashlib.sha256(content).hexdigest()
        manifest["files"][name] = {"size": len(content), "sha256": checksum}
    (target / MANIFEST).write_text(json.dumps(manifest))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("dtype", FORMATS)
def test_whole(source: Path, tmp_path: Path, dtype: str, run: Command) -> None:
    convert(source, tmp_path / "model", dtype)
    assert list(find_faults(tmp_path / "model", deep=True)) == []
    result = run(verify, tmp_path / "model", "--deep")
    assert result.code == 0
    assert "is whole: " in result.out


def test_every_file_is_looked_at(target: Path) -> None:
    """One bit anywhere, one byte less, no file: the file is named, and nothing else."""
    for name in json.loads((target / MANIFEST).read_text())["files"]:
        content = (target / name).read_bytes()
        for place in (0, len(content) // 2, -1):
            flip(target / name, place)
            assert list(find_faults(target)) == [
                f"{name} has another SHA-256 than when it was written"
            ]
            (target / name).write_bytes(content)
        (target / name).write_bytes(content[:-1])
        (fault,) = find_faults(target)
        assert fault.startswith(f"{name} has {len(content) - 1:,} bytes, expected")
        (target / name).unlink()
        assert list(find_faults(target)) == [f"{name} is missing"]
        (target / name).write_bytes(content)
    assert list(find_faults(target)) == []


def test_several_faults(target: Path, run: Command) -> None:
    (target / "block_001.safetensors").unlink()
    flip(target / "config.json", 5)
    result = run(verify, target)
    assert sorted(line.split()[0] for line in result.out.splitlines()) == [
        "block_001.safetensors",
        "config.json",
    ]
    check_failure(result._replace(out=""), "verify", "2 faults")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-64]), "embeddings.safetensors"),
        (lambda path: path.write_bytes(b"\xff" * 100), "embeddings.safetensors"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"[280,", b"[140,")),
            "embeddings.safetensors",
        ),
    ],
)
def test_headers_that_lie(target: Path, change: Callable[[Path], object], told: str) -> None:
    """The checksums are right, but the arrays are not those of the model."""
    change(target / "embeddings.safetensors")
    vouch_for(target)
    (fault,) = find_faults(target)
    assert told in fault


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_deep(source: Path, tmp_path: Path, dtype: str) -> None:
    """NaN in a vector, in a matrix, and in what lies beside one."""
    target = tmp_path / "model"
    convert(source, target, dtype)
    folder = Folder.open(target, BLOCKS, HIDDEN, VOCAB)
    vector = folder.vectors["block_001.safetensors"]["mlp.dense_4h_to_h.bias"]
    matrix = folder.matrices["block_001.safetensors"]["mlp.dense_h_to_4h.weight"]
    array = matrix.beside[".row_scale"] if matrix.beside else matrix.array
    for damaged, named in ((vector, vector), (array, matrix.array)):
        content = bytearray(damaged.path.read_bytes())
        number = np.frombuffer(content, np.uint8)[damaged.offset :][: damaged.nbytes]
        number[-4:] = [0, 0, 0xC0, 0x7F]  # NaN, in float32 and in bfloat16
        before = damaged.path.read_bytes()
        damaged.path.write_bytes(content)
        vouch_for(target)
        assert list(find_faults(target)) == []
        assert list(find_faults(target, deep=True)) == [f"{named} holds NaN or inf"]
        damaged.path.write_bytes(before)
    vouch_for(target)
    assert list(find_faults(target, deep=True)) == []


def test_manifest_without_checksum(target: Path) -> None:
    manifest = json.loads((target / MANIFEST).read_text())
    del manifest["files"]["config.json"]["sha256"]
    (target / MANIFEST).write_text(json.dumps(manifest))
    (fault,) = find_faults(target)
    assert fault.startswith("config.json has no size and checksum")


def test_no_model(tmp_path: Path, run: Command) -> None:
    with pytest.raises(NumpyBloomError, match="is not a converted model"):
        list(find_faults(tmp_path))
    check_failure(run(verify, tmp_path / "nowhere"), "verify", "is not a folder")
