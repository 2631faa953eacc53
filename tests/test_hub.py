"""Checkpoints on a hub: fetched a shard at a time, through broken connections, and checked."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.checkpoints import Checkpoint
from support.conversions import manifest, snapshot
from support.hub_server import REPOSITORY, Hub, serving

from conversion import convert
from numpy_bloom.errors import NumpyBloomError

HIDDEN = 64
LARGE = 50_000
"""Bytes; only the shards and what comes of them have so many."""

RUN = """
import json, os, sys, time
from pathlib import Path
time.sleep = lambda _seconds: None  # the library waits between its attempts
import conversion.copying
import conversion.checkpoint
import huggingface_hub.hf_api, huggingface_hub.file_download  # before all runs: it takes long
from conversion.__main__ import main
from numpy_bloom.command import run_command
most = 0
def watch(folder):
    def used():
        sizes = [f.stat().st_size for f in folder.rglob('*') if f.is_file()]
        return sum(size for size in sizes if size > 50_000)
    def measure():
        global most
        try:
            most = max(most, used())
        except FileNotFoundError:
            pass
    real, write = conversion.checkpoint.Checkpoint.open, os.write
    def opened(self, shards):
        real(self, shards)
        measure()
    def written(handle, piece):
        count = write(handle, piece)
        measure()
        return count
    conversion.checkpoint.Checkpoint.open, os.write = opened, written
for line in sys.stdin:
    folder, told, *sys.argv[1:] = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        code = None
        try:
            watch(Path(folder))
            code = run_command(main, 'conversion')
        finally:
            print(json.dumps([code, most]), flush=True)
            os._exit(0)
    os.waitpid(child, 0)
"""


Run = Callable[..., tuple[int, int, str]]
"""What `Commands.run` is."""


class Commands:
    """Conversions in processes of their own, since the library reads HF_ENDPOINT when it is
    imported; they fork off one that has imported it."""

    def __init__(self, url: str, home: Path) -> None:
        environment = os.environ | {
            "HF_ENDPOINT": url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUN],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, *arguments: str) -> tuple[int, int, str]:
        """Convert into `folder`/m.

        Returns:
            Exit code, the largest use of `folder` in bytes, stderr.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        folder.mkdir(exist_ok=True)
        told = folder.with_name("told")
        line = [str(folder), str(told), REPOSITORY, str(folder / "m"), *arguments]
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()
        code, most = json.loads(self._process.stdout.readline())
        return code, most, told.read_text()

    def __enter__(self) -> "Commands":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


class Served(NamedTuple):
    """A hub, and conversions from it."""

    hub: Hub
    commands: Commands


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("home")
    with serving() as hub, Commands(hub.url, home) as commands:
        yield Served(hub, commands)


@pytest.fixture
def hub(served: Served, tmp_path: Path) -> Hub:
    """As if nothing had been asked of it yet."""
    served.hub.show(tmp_path / "source")
    return served.hub


@pytest.fixture
def run(served: Served) -> Run:
    return served.commands.run


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    checkpoint = Checkpoint(hidden=HIDDEN, blocks=4, vocab=1000)
    folder = checkpoint.write_in_blocks(tmp_path / "source")
    return sorted(folder.glob("*-of-*"))


def test_a_shard_at_a_time(tmp_path: Path, shards: list[Path], hub: Hub, run: Run) -> None:
    """The same folder as from a local source, but for the name; with the disk of the target and one
    shard, though connections break off twice and two bodies are too short; and each of the others
    is fetched once."""
    hub.drops[shards[1].name] = [1000, 70_000]
    hub.truncated[shards[3].name] = [1000, 2000]
    code, most, told = run(tmp_path / "work")
    assert (code, "downloads 1.06 MB" in told) == (0, True), told
    convert(tmp_path / "source", tmp_path / "expected")
    found, expected = snapshot(tmp_path / "work" / "m"), snapshot(tmp_path / "expected")
    assert manifest(tmp_path / "work" / "m")["source"] == REPOSITORY
    assert found.pop("manifest.json") != expected.pop("manifest.json")
    assert found == expected
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["m"]
    target = sum(len(content) for content in found.values() if len(content) > LARGE)
    assert most <= target + max(shard.stat().st_size for shard in shards)
    for shard in shards:
        assert hub.fetched.count(shard.name) == (3 if shard in (shards[1], shards[3]) else 1)
    assert not any("README" in name for name in hub.fetched)


def test_a_shard_that_is_another_is_refused(
    tmp_path: Path, shards: list[Path], hub: Hub, run: Run
) -> None:
    """And nothing of it is used; once the hub is right, nothing else is fetched again."""
    hub.damaged.add(shards[2].name)
    code, _, told = run(tmp_path / "work")
    assert code == 1
    assert f"{shards[2].name} of {REPOSITORY} has another checksum than the hub" in told
    assert "2 files are complete" in told and told.count("\n") == 3
    assert not (tmp_path / "work" / "m").exists()
    assert not (tmp_path / "work" / "m.source" / shards[2].name).exists()
    hub.damaged.clear()
    hub.fetched.clear()
    code, _, told = run(tmp_path / "work", "--keep-source")
    assert (code, "goes on after 2 complete files" in told) == (0, True), told
    assert [name for name in hub.fetched if "-of-" in name] == [path.name for path in shards[2:]]
    assert {path.name for path in shards[2:]} < {
        path.name for path in (tmp_path / "work" / "m.source").iterdir()
    }


def test_a_hub_that_cannot_be_had(tmp_path: Path, shards: list[Path], hub: Hub, run: Run) -> None:
    hub.truncated[shards[1].name] = [1000] * 9
    code, _, told = run(tmp_path / "work")
    assert code == 1 and f"cannot download {shards[1].name} of {REPOSITORY}: " in told
    with Commands("http://127.0.0.1:9", tmp_path / "home") as commands:  # where nobody answers
        code, _, told = commands.run(tmp_path / "work")
    assert code == 1 and "cannot be had from the hub" in told


def test_a_small_file_that_is_none(tmp_path: Path, shards: list[Path], hub: Hub, run: Run) -> None:
    """It is not even fetched."""
    with (tmp_path / "source" / "tokenizer.json").open("ab") as file:
        file.truncate(40_000_000)
    code, _, told = run(tmp_path / "work")
    assert code == 1
    assert f"tokenizer.json of {REPOSITORY} has 40,000,000 bytes, expected at most 32,0" in told
    assert "tokenizer.json" not in hub.fetched


@pytest.mark.usefixtures("shards", "hub")
def test_what_is_in_the_way(tmp_path: Path, run: Run) -> None:
    mine = tmp_path / "work" / "m.source" / "mine"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    code, _, told = run(tmp_path / "work")
    assert code == 1 and "m.source is in the way" in told and mine.read_text() == "mine"


def test_an_existing_target_is_told_before_the_hub_is_asked(tmp_path: Path) -> None:
    with pytest.raises(NumpyBloomError, match="exists and is no converted model"):
        convert("some/model", tmp_path)
