"""Files that are no prompt cache of this model, are not there, or cannot be written or read."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import Checkpoint, write_safetensors
from support.conversions import converted, failing
from support.prompt_caches import NEW, PROMPT, TINY, again, ids_of

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.errors import NumpyBloomError


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
    begun_file: Path, tmp_path: Path, checkpoint: Checkpoint, dtype: str, differs: str
) -> None:
    content = begun_file.read_bytes()
    with numpy_bloom.load(converted(checkpoint, tmp_path / "other", dtype)) as other:
        for ignore in (False, True):
            with pytest.raises(NumpyBloomError) as error:
                again(other, begun_file, ignore_damaged_cache=ignore)
            assert f"{begun_file} was written with another model: " in str(error.value)
            assert differs in str(error.value)
            with pytest.raises(NumpyBloomError, match="was written with another model"):
                other.resume(begun_file, ignore_damaged_cache=ignore)
    assert begun_file.read_bytes() == content


def test_the_same_model_elsewhere(begun_file: Path, tmp_path: Path, tiny_text: list[int]) -> None:
    with numpy_bloom.load(converted(Checkpoint(**TINY), tmp_path / "again")) as model:
        assert ids_of(model.resume(begun_file)) == tiny_text


def test_files_that_are_something_else(
    tiny_model: Bloom, tiny_folder: Path, tmp_path: Path
) -> None:
    """They are never replaced."""
    weights = tmp_path / "weights"
    write_safetensors(weights, {"a": np.zeros(3, dtype=np.float32)})
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (
        weights,
        tiny_folder / "block_000.safetensors",
        tiny_folder,
        fifo,
        Path(os.devnull),
    ):
        for ignore in (False, True):
            with pytest.raises(NumpyBloomError, match=rf"^{path} is no .*; choose another"):
                again(tiny_model, path, ignore_damaged_cache=ignore)
            with pytest.raises(NumpyBloomError, match=rf"^{path} is no .*; choose another"):
                tiny_model.resume(path, ignore_damaged_cache=ignore)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "weights"]


@pytest.mark.parametrize("begun", [0, 2])
def test_a_file_that_another_run_replaces(tiny_model: Bloom, tmp_path: Path, begun: int) -> None:
    """Of the same program too: nothing is written where nobody will find it."""
    path = tmp_path / "text"
    first = tiny_model.generate(PROMPT, max_new_tokens=NEW, prompt_cache=path)
    for _ in range(begun):
        next(first)
    second = again(tiny_model, path)
    content = path.read_bytes()
    with pytest.raises(NumpyBloomError, match=rf"{path} was removed, or replaced by another run"):
        list(first)
    assert path.read_bytes() == content
    assert ids_of(tiny_model.resume(path)) == second


def test_no_file(tiny_model: Bloom, tmp_path: Path) -> None:
    with pytest.raises(NumpyBloomError, match=r"cannot read .*nothing: No such file or directory$"):
        tiny_model.resume(tmp_path / "nothing")
    with pytest.raises(NumpyBloomError, match=r"cannot write .*text.partial: No such file or dir"):
        again(tiny_model, tmp_path / "nowhere" / "text")


# --- disks ----------------------------------------------------------------------------------------

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", range(1, 35))
def test_full_disk(
    tiny_model: Bloom,
    tmp_path: Path,
    tiny_text: list[int],
    monkeypatch: pytest.MonkeyPatch,
    call: int,
) -> None:
    """At any write: what is in the file goes on there, what was given out stays."""
    path = tmp_path / "text"
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing(os.pwrite, call, FULL))
        try:
            generation = tiny_model.generate(PROMPT, max_new_tokens=NEW, prompt_cache=path)
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
    resumed = tiny_model.resume(path)
    assert len(resumed.token_ids) >= len(got)
    assert ids_of(resumed) == tiny_text
    path.write_bytes(content)
    assert got + ids_of(generation) == tiny_text
    if len(got) < NEW - 1:
        assert ids_of(tiny_model.resume(path)) == tiny_text


def test_unreadable_keys_and_values(
    tiny_model: Bloom, begun_file: Path, tiny_text: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in range(1, 20):
        with monkeypatch.context() as patch:
            error = OSError(errno.EIO, os.strerror(errno.EIO))
            patch.setattr(os, "preadv", failing(os.preadv, call, error))
            with pytest.raises(
                NumpyBloomError, match=rf"^cannot read {begun_file}: Input/output error"
            ):
                tiny_model.resume(begun_file)
    assert ids_of(tiny_model.resume(begun_file)) == tiny_text
