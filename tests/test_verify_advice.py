"""What `python -m conversion.verify` advises is done here to the letter and helps."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import Checkpoint
from support.commands import Command
from support.damages import flip, relist, told, vouch_for

from conversion import __main__ as conversion_command
from conversion import convert, export, verify
from numpy_bloom import generate
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.folder import Folder
from numpy_bloom.weights.manifest import MANIFEST
from numpy_bloom.weights.safetensors_file import read_header

NAME = "it's  a model; $HOME"
BLOCK, OTHER = "block_000.safetensors", "block_001.safetensors"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, `source`, and what it is converted to."""
    folder = tmp_path_factory.mktemp("advice")
    convert(Checkpoint().write(folder / "source"), folder / NAME)
    return folder


@pytest.fixture
def target(pair: Path, tmp_path: Path) -> Path:
    """A copy of the model."""
    return Path(shutil.copytree(pair / NAME, tmp_path / NAME))


def says(**values: object) -> Callable[[Path], object]:
    """Change what the manifest says of itself."""

    def damage(target: Path) -> None:
        manifest = json.loads((target / MANIFEST).read_text())
        (target / MANIFEST).write_text(json.dumps(manifest | values))

    return damage


def both(*damages: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda target: [damage(target) for damage in damages]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "lost": lambda target: (target / MANIFEST).unlink(),
    "torn": lambda target: (target / MANIFEST).write_text("{"),
    "another version": says(format_version=2),
    "no list": says(files=None),
    "another file is gone": lambda target: (target / BLOCK).unlink(),
    "bits": lambda target: flip(target / BLOCK, -1),
    "an entry, and a file is gone": both(
        lambda target: relist(target, lambda files: files.update({BLOCK: 7})),
        lambda target: (target / OTHER).unlink(),
    ),
    "not listed, and a file that is none": both(
        lambda target: relist(target, lambda files: files.pop(BLOCK)),
        lambda target: (target / BLOCK).unlink(),
        lambda target: (target / "no file").mkdir(),
        lambda target: flip(target / OTHER, -1),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_advice_works(
    pair: Path, target: Path, command: Command, damage: Callable[[Path], object]
) -> None:
    damage(target)
    code, _, err = command(verify, target)
    assert (code, err.count("\n"), err.count("python -m conversion ")) == (1, 1, 1)
    if files := re.search(r"convert (.*?) again: delete what is there of that", err):
        (target / files[1]).unlink(missing_ok=True)
    if "delete it and run" in err:
        shutil.rmtree(target)
    for name in re.findall(r"move '(.*?)' out of", err):
        (target / name).rmdir()
    line = err.partition("python -m conversion ")[2].partition(" (SOURCE was ")[0]
    source, *arguments = shlex.split(line)
    assert (source, arguments[0]) == ("SOURCE", str(target))
    assert command(conversion_command, pair / "source", *arguments).code == 0
    assert command(verify, target).code == 0


def test_what_a_folder_without_a_manifest_is(target: Path, command: Command) -> None:
    """A model that has lost it is no SOURCE; a checkpoint is; another folder may be anything."""
    (target / MANIFEST).unlink()
    lost = command(verify, target).err
    assert f"conversion SOURCE {shlex.quote(str(target))}" in lost
    (target / "config.json").rename(target.parent / "config.json")
    assert command(verify, target).err == lost
    for path in target.glob("*.safetensors"):
        path.unlink()
    assert "python -m conversion SOURCE TARGET\n" in command(verify, target).err
    (target.parent / "config.json").rename(target / "config.json")
    made_of = f"with: python -m conversion {shlex.quote(str(target))} TARGET\n"
    assert made_of in command(verify, target).err


def test_loading_and_exporting_advise_the_same(target: Path, command: Command) -> None:
    relist(target, lambda files: files.pop(BLOCK))
    way_out = f"python -m conversion SOURCE {shlex.quote(str(target))} --overwrite"
    with pytest.raises(NumpyBloomError) as error:
        Folder.open(target, 2, 16, 276)
    assert str(error.value).endswith(
        f"does not list {BLOCK}; convert the checkpoint again: {way_out}"
    )
    says(files=7)(target)
    with pytest.raises(NumpyBloomError, match=re.escape(way_out)):
        told(target)


@pytest.mark.parametrize("vouched", [False, True])
@pytest.mark.parametrize("array", ["mlp.dense_h_to_4h.weight", "mlp.dense_h_to_4h.bias"])
def test_an_error_of_a_damaged_model_names_verify(
    target: Path, command: Command, array: str, vouched: bool
) -> None:
    """Which finds the fault, also if the manifest says that it was written so."""
    with (target / BLOCK).open("r+b") as file:
        file.seek(read_header(target / BLOCK)[array].offset)
        file.write(np.float32(np.nan).tobytes())
    if vouched:
        vouch_for(target)
    err = command(generate, "Todos", "--model", target).err
    words = shlex.split(err.partition("way out: python -m conversion.verify ")[2])
    result = command(verify, *(target if word == "MODEL" else word for word in words))
    assert result.code == 1
    assert ("holds NaN or inf\n" in result.out) == vouched
    assert f"convert {BLOCK} again" in result.err or "--overwrite" in result.err


def test_export_names_verify(target: Path, tmp_path: Path, command: Command) -> None:
    flip(target / BLOCK, -1)
    err = command(export, target, tmp_path / "hf").err
    assert err.endswith(f"way out: python -m conversion.verify {shlex.quote(str(target))}\n")
