"""Names on the hub, with a stand-in for it: which files are fetched, and what a failure is told."""

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest
from checkpoints import Checkpoint
from conversions import failing

from conversion import convert
from numpy_bloom.errors import NumpyBloomError


class Hub:
    """Stands in for huggingface_hub: lists files, and downloads to a folder."""

    def __init__(self, files: list[str], folder: Path) -> None:
        self.files = files
        self.folder = folder
        self.patterns: list[str] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.list_repo_files", lambda _name: self.files)
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.snapshot_download)

    def snapshot_download(self, _name: str, *, allow_patterns: list[str]) -> str:
        self.patterns = allow_patterns
        return str(self.folder)

    def downloads(self, file: str) -> bool:
        return any(fnmatch(file, pattern) for pattern in self.patterns)


@pytest.mark.parametrize(
    ("weights", "left"),
    [
        (["model.safetensors"], ["pytorch_model.bin", "flax_model.msgpack"]),
        (["pytorch_model.bin"], ["flax_model.msgpack", "adapter.safetensors"]),
        (
            ["model_00001-of-00072.safetensors", "model.safetensors.index.json"],
            ["pytorch_model_00001-of-00072.bin", "pytorch_model.bin.index.json"],
        ),
        (["pytorch_model_00001-of-00072.bin", "pytorch_model.bin.index.json"], []),
        ([], ["flax_model.msgpack"]),
    ],
)
def test_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: list[str], left: list[str]
) -> None:
    texts = ["config.json", "tokenizer.json", "generation_config.json", "special_tokens_map.json"]
    hub = Hub([*texts, *weights, *left, "README.md"], Checkpoint().write(tmp_path / "a1b2c3"))
    hub.install(monkeypatch)
    convert("some/model", tmp_path / "model")
    assert [file for file in hub.files if hub.downloads(file)] == [*texts, *weights]
    assert json.loads((tmp_path / "model/manifest.json").read_text())["source"] == "some/model"


def test_hub_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError("401 Client Error.\nRepository Not Found")
    monkeypatch.setattr("huggingface_hub.list_repo_files", failing(list, 1, error))
    with pytest.raises(NumpyBloomError, match=r"some/model.*401 Client Error\.$"):
        convert("some/model", tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_an_existing_target_is_told_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub([], tmp_path)
    hub.install(monkeypatch)
    monkeypatch.setattr("huggingface_hub.list_repo_files", failing(list, 1, AssertionError()))
    with pytest.raises(NumpyBloomError, match="exists and is no converted model"):
        convert("some/model", tmp_path)
