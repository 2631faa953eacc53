"""`python -m conversion.verify`: whatever is done to a converted folder is told by name."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import Checkpoint
from support.commands import Command, check_failure
from support.damages import faults_of, flip, told, vouch_for

import numpy_bloom
from conversion import convert, verify
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.folder import EMBEDDINGS, Folder
from numpy_bloom.weights.formats import FORMATS
from numpy_bloom.weights.manifest import MANIFEST

HIDDEN, BLOCKS, VOCAB = 32, 2, 280


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = Checkpoint(heads=4, hidden=HIDDEN, blocks=BLOCKS, vocab=VOCAB, seed=3)
    return checkpoint.write(tmp_path_factory.mktemp("verify") / "source")


@pytest.fixture(scope="module")
def original(source: Path) -> Path:
    convert(source, source.with_name("model"))
    return source.with_name("model")


@pytest.fixture
def target(original: Path, tmp_path: Path) -> Path:
    """A copy of a sound model."""
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.mark.parametrize("dtype", FORMATS)
def test_whole(source: Path, tmp_path: Path, dtype: str, command: Command) -> None:
    convert(source, tmp_path / "model", dtype)
    assert told(tmp_path / "model", deep=True) == []
    result = command(verify, tmp_path / "model", "--deep")
    assert result.code == 0
    assert "is whole: " in result.out


def test_every_file_is_looked_at(target: Path) -> None:
    """One bit anywhere, one byte less, no file: the file is named, and nothing else."""
    for name in json.loads((target / MANIFEST).read_text())["files"]:
        content = (target / name).read_bytes()
        for place in (0, len(content) // 2, -1):
            flip(target / name, place)
            assert told(target) == [f"{name} has another SHA-256 than when it was written"]
            (target / name).write_bytes(content)
        (target / name).write_bytes(content[:-1])
        (fault,) = told(target)
        assert fault.startswith(f"{name} has {len(content) - 1:,} bytes, expected")
        (target / name).unlink()
        assert told(target) == [f"{name} is missing"]
        (target / name).write_bytes(content)
    assert told(target) == []


def test_several_faults(target: Path, command: Command) -> None:
    (target / "block_001.safetensors").unlink()
    flip(target / "config.json", 5)
    result = command(verify, target)
    assert sorted(line.split()[0] for line in result.out.splitlines()) == [
        "block_001.safetensors",
        "config.json",
    ]
    check_failure(
        result._replace(out=""),
        "verify",
        "2 faults; convert block_001.safetensors, config.json again: delete what is there of that "
        f"and run python -m conversion SOURCE {target} --dtype float32 --head-dtype float32 "
        "(SOURCE was 'source'), which writes what is missing",
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-64],
        lambda _content: b"\xff" * 100,
        lambda content: content.replace(b"[280,", b"[140,"),
    ],
)
def test_headers_that_lie(target: Path, change: Callable[[bytes], bytes], command: Command) -> None:
    """The checksums are right, but the arrays of two files are not those of the model: both are
    told, and a third one that is damaged as well."""
    for name in (EMBEDDINGS, "block_000.safetensors"):
        (target / name).write_bytes(change((target / EMBEDDINGS).read_bytes()))
    vouch_for(target)
    flip(target / "block_001.safetensors", 5)
    faults = faults_of(target)
    assert [fault.file for fault in faults] == [
        "block_001.safetensors",
        EMBEDDINGS,
        "block_000.safetensors",
    ]
    assert all(str(target / fault.file) in fault.text for fault in faults[1:])
    assert (
        f"; {EMBEDDINGS}, block_000.safetensors cannot be what a conversion wrote: "
        f"convert the checkpoint again: python -m conversion SOURCE {target} --overwrite "
        "--dtype float32 --head-dtype float32 (SOURCE was 'source')\n"
    ) in command(verify, target).err


def test_damaged_config_hides_no_header(target: Path) -> None:
    (target / EMBEDDINGS).write_bytes(b"\xff" * 100)
    vouch_for(target)
    flip(target / "config.json", 5)
    assert [fault.file for fault in faults_of(target)] == ["config.json", EMBEDDINGS]


def test_config_of_another_model(target: Path) -> None:
    """Of one block more, one less, of another width, and none at all."""
    config = json.loads((target / "config.json").read_text())
    blocks = ["block_000.safetensors", "block_001.safetensors"]
    for change, files in (
        ({"n_layer": BLOCKS + 1}, [MANIFEST]),
        ({"n_layer": BLOCKS - 1}, [MANIFEST]),
        ({"n_layer": 900}, [MANIFEST] * 5),
        ({"n_layer": 10**12}, ["config.json"]),
        ({"hidden_size": 2 * HIDDEN}, [EMBEDDINGS, *blocks, "final_layernorm.safetensors"]),
        ({"n_head": 3}, ["config.json"]),
    ):
        (target / "config.json").write_text(json.dumps(config | change))
        vouch_for(target)
        assert [fault.file for fault in faults_of(target)] == files


def test_what_is_not_listed(target: Path, command: Command) -> None:
    """Files, folders, and links, of which some lead nowhere; a listed one may be a link."""
    (target / "block_001.safetensors.new").write_bytes(b"half")
    (target / "folder").mkdir()
    (target / "link").symlink_to(target / "nowhere")
    (target / "line\nbreak\udcff").touch()
    (target / "block_001.safetensors").rename(target.parent / "elsewhere")
    (target / "block_001.safetensors").symlink_to(target.parent / "elsewhere")
    faults = [
        "'block_001.safetensors.new' is not listed in manifest.json",
        "'folder' is not listed in manifest.json",
        "'line\\nbreak\\udcff' is not listed in manifest.json",
        "'link' is not listed in manifest.json, and is a link to "
        f"'{target / 'nowhere'}', which is missing",
    ]
    assert told(target) == faults
    result = command(verify, target)
    assert (result.code, result.out.splitlines()) == (1, faults)
    assert result.err.endswith(
        "4 faults; move 'block_001.safetensors.new', 'folder', 'line\\nbreak\\udcff', 'link' "
        "out of the folder\n"
    )


def test_what_is_no_file(target: Path) -> None:
    """A link that leads nowhere, and a folder, under the names of files."""
    (target / "block_001.safetensors").rename(target.parent / "elsewhere")
    (target / "block_001.safetensors").symlink_to(target.parent / "elsewhere")
    (target.parent / "elsewhere").unlink()
    (target / "config.json").unlink()
    (target / "config.json").mkdir()
    assert told(target) == [
        f"block_001.safetensors is a link to '{target.parent / 'elsewhere'}', which is missing",
        "config.json is no file",
    ]


def test_what_cannot_be_read(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad sector hides no other fault."""
    real = verify.sha256

    def sha256(path: Path, progress: Callable[[int], object]) -> str:
        if path.name == "block_000.safetensors":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, progress)

    monkeypatch.setattr(verify, "sha256", sha256)
    (target / "block_001.safetensors").unlink()
    assert told(target) == [
        "block_000.safetensors cannot be read: Input/output error",
        "block_001.safetensors is missing",
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_deep(source: Path, tmp_path: Path, dtype: str) -> None:
    """NaN in a vector, in a matrix, and in what lies beside one."""
    target = tmp_path / "model"
    convert(source, target, dtype)
    folder = Folder.open(target, BLOCKS, HIDDEN, VOCAB)
    vector = folder.files["block_001.safetensors"].vectors["mlp.dense_4h_to_h.bias"]
    matrix = folder.files["block_001.safetensors"].matrices["mlp.dense_h_to_4h.weight"]
    array = matrix.beside[".row_scale"] if matrix.beside else matrix.array
    for damaged, named in ((vector, vector), (array, array)):
        content = bytearray(damaged.path.read_bytes())
        number = np.frombuffer(content, np.uint8)[damaged.offset :][: damaged.nbytes]
        number[-4:] = [0, 0, 0xC0, 0x7F]  # NaN, in float32 and in bfloat16
        before = damaged.path.read_bytes()
        damaged.path.write_bytes(content)
        vouch_for(target)
        assert told(target) == []
        (fault,) = told(target, deep=True)
        assert fault.startswith(f"{named} holds NaN or inf")
        damaged.path.write_bytes(before)
    vouch_for(target)
    assert told(target, deep=True) == []


@pytest.mark.parametrize(
    ("suffix", "number", "text"),
    [
        (".exponent_base", 121, "has exponent_base 121, expected 0 to 120"),
        (".exponent_base", 1 << 63, f"has exponent_base {1 << 63}, expected 0 to 120"),
        (".exceptions", 0, "has exceptions that are not in order"),
        (".exceptions", 3 * HIDDEN * HIDDEN << 16, "has exceptions beyond its 3,072 weights"),
        (".exceptions", (1 << 64) - 1, "has exceptions beyond its 3,072 weights"),
    ],
)
def test_packed_headers(tmp_path: Path, suffix: str, number: int, text: str) -> None:
    """The last of the numbers beside a packed matrix is another."""
    checkpoint = Checkpoint(heads=4, hidden=HIDDEN, blocks=BLOCKS, vocab=VOCAB, dtype="bfloat16")
    name = "self_attention.query_key_value.weight"
    for place, outlier in ((7, 2.0**90), (2000, -(2.0**-100))):
        flat = checkpoint.tensors[f"h.0.{name}"].reshape(-1)
        flat[place] = np.float32(outlier).view(np.uint32) >> 16
    target = tmp_path / "model"
    convert(checkpoint.write(tmp_path / "source"), target, "bfloat16-packed")
    assert told(target, deep=True) == []
    matrix = (
        Folder.open(target, BLOCKS, HIDDEN, VOCAB).files["block_000.safetensors"].matrices[name]
    )
    beside = matrix.beside[suffix]
    with beside.path.open("r+b") as file:
        file.seek(beside.offset + beside.nbytes - 8)
        file.write(number.to_bytes(8, "little"))
    vouch_for(target)
    assert told(target) == []
    assert told(target, deep=True) == [f"{matrix.array} {text}"]
    with pytest.raises(NumpyBloomError, match=text), numpy_bloom.load(target):
        pass


def test_no_model(tmp_path: Path, command: Command) -> None:
    with pytest.raises(NumpyBloomError, match="is not a converted model"):
        told(tmp_path)
    check_failure(command(verify, tmp_path / "nowhere"), "verify", "is not a folder")
