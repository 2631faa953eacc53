"""Checkpoints on a hub: fetched a shard at a time, through broken connections, and checked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import Checkpoint
from conversions import manifest, snapshot
from hub_server import REPOSITORY, Hub, serving

from conversion import convert
from numpy_bloom.errors import NumpyBloomError

HIDDEN = 64
LARGE = 50_000
"""Bytes; only the shards and what comes of them have so many."""

RUN = """
import os, sys, time
from pathlib import Path
time.sleep = lambda _seconds: None  # the library waits between its attempts
import conversion.shards
folder = Path(sys.argv[1])
most = 0
real = conversion.shards.Checkpoint.open
def used():
    sizes = [f.stat().st_size for f in folder.rglob('*') if f.is_file()]
    return sum(size for size in sizes if size > 50_000)
def measure(*_):
    global most
    try:
        most = max(most, used())
    except FileNotFoundError:
        pass
def opened(self, shards):
    real(self, shards)
    measure()
conversion.shards.Checkpoint.open = opened
import conversion.copying
write = os.write
def written(handle, piece):
    count = write(handle, piece)
    measure()
    return count
os.write = written
from conversion.__main__ import main
from numpy_bloom.command import run_command
sys.argv = ['conversion', *sys.argv[2:]]
code = run_command(main, 'conversion')
print(most)
sys.exit(code)
"""


def run(hub: Hub, folder: Path, *arguments: str) -> tuple[int, int, str]:
    """Convert in a process of its own, since the library reads HF_ENDPOINT when it is imported.

    Returns:
        Exit code, the largest use of `folder` in bytes, stderr.
    """
    folder.mkdir(exist_ok=True)
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder.with_name("home")),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-c", RUN, str(folder), REPOSITORY, str(folder / "m"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, int(done.stdout or 0), done.stderr


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    checkpoint = Checkpoint(hidden=HIDDEN, blocks=4, vocab=1000)
    folder = checkpoint.write_in_blocks(tmp_path / "source")
    return sorted(folder.glob("*-of-*"))


def test_a_shard_at_a_time(tmp_path: Path, shards: list[Path]) -> None:
    """The same folder as from a local source, but for the name; with the disk of the target and one
    shard, though connections break off twice and two bodies are too short; and each of the others
    is fetched once."""
    with serving(tmp_path / "source") as hub:
        hub.drops[shards[1].name] = [1000, 70_000]
        hub.truncated[shards[3].name] = [1000, 2000]
        code, most, told = run(hub, tmp_path / "work")
    assert (code, "downloads 0.0" in told) == (0, True), told
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


def test_a_shard_that_is_another_is_refused(tmp_path: Path, shards: list[Path]) -> None:
    """And nothing of it is used; once the hub is right, nothing else is fetched again."""
    with serving(tmp_path / "source") as hub:
        hub.damaged.add(shards[2].name)
        code, _, told = run(hub, tmp_path / "work")
        assert code == 1
        assert f"{shards[2].name} of {REPOSITORY} has another checksum than the hub" in told
        assert "2 files are complete" in told and told.count("\n") == 3
        assert not (tmp_path / "work" / "m").exists()
        assert not (tmp_path / "work" / "m.source" / shards[2].name).exists()
        hub.damaged.clear()
        hub.fetched.clear()
        code, _, told = run(hub, tmp_path / "work", "--keep-source")
        assert (code, "goes on after 2 complete files" in told) == (0, True), told
    assert [name for name in hub.fetched if "-of-" in name] == [path.name for path in shards[2:]]
    assert {path.name for path in shards[2:]} < {
        path.name for path in (tmp_path / "work" / "m.source").iterdir()
    }


def test_a_hub_that_cannot_be_had(tmp_path: Path, shards: list[Path]) -> None:
    with serving(tmp_path / "source") as hub:
        hub.truncated[shards[1].name] = [1000] * 9
        code, _, told = run(hub, tmp_path / "work")
        assert code == 1 and f"cannot download {shards[1].name} of {REPOSITORY}: " in told
        hub.truncated.clear()
    code, _, told = run(hub, tmp_path / "work")
    assert code == 1 and "cannot be had from the hub" in told


def test_a_small_file_that_is_none(tmp_path: Path, shards: list[Path]) -> None:
    """It is not even fetched."""
    with (tmp_path / "source" / "tokenizer.json").open("ab") as file:
        file.truncate(40_000_000)
    with serving(tmp_path / "source") as hub:
        code, _, told = run(hub, tmp_path / "work")
    assert code == 1
    assert f"tokenizer.json of {REPOSITORY} has 40,000,000 bytes, expected at most 32,0" in told
    assert "tokenizer.json" not in hub.fetched


def test_what_is_in_the_way(tmp_path: Path, shards: list[Path]) -> None:
    mine = tmp_path / "work" / "m.source" / "mine"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with serving(tmp_path / "source") as hub:
        code, _, told = run(hub, tmp_path / "work")
    assert code == 1 and "m.source is in the way" in told and mine.read_text() == "mine"


def test_an_existing_target_is_told_before_the_hub_is_asked(tmp_path: Path) -> None:
    with pytest.raises(NumpyBloomError, match="exists and is no converted model"):
        convert("some/model", tmp_path)
