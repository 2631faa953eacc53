"""Files that are no kept text of this model, are not there, or cannot be written or read."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import Checkpoint, byte_ids, write_safetensors
from support.conversions import converted, failing
from support.keeping import TINY, cut_off, ids_of

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.errors import NumpyBloomError

PROMPT = byte_ids("Todos los")
NEW, BEGUN = 8, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(Checkpoint(**TINY), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Bloom]:
    with numpy_bloom.load(folder, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def text(model: Bloom) -> list[int]:
    return ids_of(model.generate(PROMPT, max_new_tokens=NEW))


@pytest.fixture
def file(model: Bloom, tmp_path: Path) -> Path:
    """A text that was cut off."""
    cut_off(model, tmp_path / "text", PROMPT, BEGUN, max_new_tokens=NEW)
    return tmp_path / "text"


def again(model: Bloom, file: Path, **options: Any) -> list[int]:
    return ids_of(model.generate(PROMPT, max_new_tokens=NEW, prompt_cache=file, **options))


@pytest.mark.parametrize(
    ("checkpoint", "dtype", "differs"),
    [
        (Checkpoint(**TINY), "bfloat16", "dtype is 'float32', here it is 'bfloat16'"),
        (Checkpoint(**TINY, seed=1), "keep", "another model: weights differ; choose another file"),
        (Checkpoint(**{**TINY, "blocks": 3}), "keep", "weights differ"),
        (
            Checkpoint(**{**TINY, "config": {"eos_token_id": None, "layer_norm_epsilon": 1e-3}}),
            "keep",
            "weights differ",
        ),
    ],
)
def test_another_model(
    file: Path, tmp_path: Path, checkpoint: Checkpoint, dtype: str, differs: str
) -> None:
    content = file.read_bytes()
    with numpy_bloom.load(converted(checkpoint, tmp_path / "other", dtype)) as other:
        for ignore in (False, True):
            with pytest.raises(NumpyBloomError) as error:
                again(other, file, ignore_damaged_cache=ignore)
            assert f"{file} was written with another model: " in str(error.value)
            assert differs in str(error.value)
            with pytest.raises(NumpyBloomError, match="was written with another model"):
                other.resume(file, ignore_damaged_cache=ignore)
    assert file.read_bytes() == content


def test_the_same_model_elsewhere(file: Path, tmp_path: Path, text: list[int]) -> None:
    with numpy_bloom.load(converted(Checkpoint(**TINY), tmp_path / "again")) as model:
        assert ids_of(model.resume(file)) == text


def test_files_that_are_something_else(model: Bloom, folder: Path, tmp_path: Path) -> None:
    """They are never replaced."""
    weights = tmp_path / "weights"
    write_safetensors(weights, {"a": np.zeros(3, dtype=np.float32)})
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (weights, folder / "block_000.safetensors", folder, fifo, Path(os.devnull)):
        for ignore in (False, True):
            with pytest.raises(NumpyBloomError, match=rf"^{path} is no .*; choose another"):
                again(model, path, ignore_damaged_cache=ignore)
            with pytest.raises(NumpyBloomError, match=rf"^{path} is no .*; choose another"):
                model.resume(path, ignore_damaged_cache=ignore)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "weights"]


def test_no_file(model: Bloom, tmp_path: Path) -> None:
    with pytest.raises(NumpyBloomError, match=r"cannot read .*nothing: No such file or directory$"):
        model.resume(tmp_path / "nothing")
    with pytest.raises(NumpyBloomError, match=r"cannot write .*text.partial: No such file or dir"):
        again(model, tmp_path / "nowhere" / "text")


# --- disks ----------------------------------------------------------------------------------------

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", range(1, 35))
def test_full_disk(
    model: Bloom, tmp_path: Path, text: list[int], monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """At any write: what is in the file goes on there, what was given out stays."""
    path = tmp_path / "text"
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing(os.pwrite, call, FULL))
        try:
            generation = model.generate(PROMPT, max_new_tokens=NEW, prompt_cache=path)
        except NumpyBloomError as error:
            assert str(error).startswith(f"cannot write {path}")
            assert list(tmp_path.iterdir()) == []
            return
        got: list[int] = []
        with pytest.raises(NumpyBloomError) as error:
            for token in generation:
                got.append(token.id)
        assert str(error.value) == (
            f"cannot write {path}: No space left on device; it holds the text up to here: make "
            "room, and resume it"
        )
    content = path.read_bytes()
    resumed = model.resume(path)
    assert len(resumed.token_ids) >= len(got)
    assert ids_of(resumed) == text
    path.write_bytes(content)
    assert got + ids_of(generation) == text
    if len(got) < NEW - 1:
        assert ids_of(model.resume(path)) == text


def test_unreadable_keys_and_values(
    model: Bloom, file: Path, text: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in range(1, 20):
        with monkeypatch.context() as patch:
            error = OSError(errno.EIO, os.strerror(errno.EIO))
            patch.setattr(os, "preadv", failing(os.preadv, call, error))
            with pytest.raises(NumpyBloomError, match=rf"^cannot read {file}: Input/output error"):
                model.resume(file)
    assert ids_of(model.resume(file)) == text
