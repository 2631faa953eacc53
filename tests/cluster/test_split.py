"""Machines that have some of the files only."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import NEW, PROMPTS, distributed, generated, holders, opened, strike
from support.commands import Command, check_failure

import numpy_bloom
from conversion import split as split_command
from conversion.split import split
from numpy_bloom.cluster import chain
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.folder import FINAL_LAYERNORM, MANIFEST, block_file

HERE = Path("/proc/self/cwd/blocks")
"""The model's path: in each process another place."""

CLOSED = "closed"
"""A file; while a machine has it, it starts no process."""

START = f"""
import os, time
os.chdir({{machine!r}})
while os.path.exists({CLOSED!r}):
    time.sleep(0.01)
"""


@pytest.fixture
def machines(folder: Path, tmp_path: Path) -> list[Path]:
    """Two, with half of the blocks each."""
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    dealt = split(model, 2)
    assert [str(part) for _, part in dealt] == ["blocks 0 to 3", "blocks 4 to 5 and head"]
    machines = [tmp_path / "first", tmp_path / "last"]
    for machine, (part, _) in zip(machines, dealt, strict=True):
        machine.mkdir()
        part.rename(machine / "blocks")
    return machines


@pytest.fixture
def client(
    folder: Path, machines: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A client, with no more than small files, of a worker on each machine."""
    own = tmp_path / "client/blocks"
    own.mkdir(parents=True)
    for file in folder.glob("*.json"):
        shutil.copy(file, own)
    monkeypatch.chdir(own.parent)
    workers = {}
    for machine in machines:
        options = {"nthreads": 1, "preload": [START.format(machine=str(machine))]}
        workers[machine.name] = {"cls": distributed.Nanny, "options": options}
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": ":0"},
    }
    with (
        distributed.SpecCluster(workers, scheduler) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(2, timeout=30)
        yield client


def test_each_is_dealt_what_it_has(folder: Path, machines: list[Path], client: Any) -> None:
    with numpy_bloom.load(folder) as one, opened(HERE, client) as spread:
        assert np.array_equal(spread(PROMPTS[0]), one(PROMPTS[0]))
        homes = client.run(os.getcwd)
        assert [homes[address] for address in holders(spread)] == list(map(str, machines))
    (machines[1] / "blocks" / FINAL_LAYERNORM).unlink()
    with (
        pytest.raises(NumpyBloomError, match=f"no worker .* has {FINAL_LAYERNORM} of {HERE}"),
        opened(HERE, client),
    ):
        pass


def test_one_that_comes_back_is_waited_for(
    folder: Path,
    machines: list[Path],
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody else has its blocks."""
    closed, real = machines[0] / CLOSED, chain.redeal

    def redeal(*arguments: Any) -> Any:
        try:
            return real(*arguments)
        except NumpyBloomError:
            closed.unlink(missing_ok=True)  # it may come
            raise

    monkeypatch.setattr(chain, "redeal", redeal)
    with numpy_bloom.load(folder) as one, opened(HERE, client) as spread:
        generation = spread.generate(PROMPTS[0], max_new_tokens=NEW)
        next(generation)
        closed.touch()
        strike(spread, 0)
        list(generation)
        assert generation.token_ids == [token for token, _ in generated(one, PROMPTS[0])]
    told = [record.message for record in caplog.records if "waiting" in record.message]
    assert told == [
        "a worker was lost, and no other one has the files of blocks 0 to 3; give them to another "
        "worker, or start that one again; waiting 10 s for that"
    ]


def test_one_that_stays_away_is_given_up(
    machines: list[Path], client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "MOST_SECONDS", 0.1)
    with opened(HERE, client) as spread:
        (machines[0] / CLOSED).touch()
        strike(spread, 0)
        with pytest.raises(NumpyBloomError, match="no other one has the files of blocks 0 to 3"):
            spread(PROMPTS[0])
    (machines[0] / CLOSED).unlink()


def test_a_manifest_that_lists_too_little(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    manifest = json.loads((model / MANIFEST).read_text())
    del manifest["files"][block_file(3)]
    (model / MANIFEST).write_text(json.dumps(manifest))
    told = f"^{model / MANIFEST} does not list {block_file(3)}; convert the checkpoint again"
    with pytest.raises(NumpyBloomError, match=told):
        split(model, 2)
    with pytest.raises(NumpyBloomError, match=told), opened(model, "local:1"):
        pass


def test_split_of_the_current_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    assert [path for path, _ in split(Path(), 2)] == [
        tmp_path / "model.1-of-2",
        tmp_path / "model.2-of-2",
    ]


def test_split_refuses(folder: Path, tmp_path: Path, command: Command) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    result = command(split_command, model, "--parts", 9)
    check_failure(result, "split", "parts is 9; expected a value in [1, 7]", 2)
    result = command(split_command, model, "--parts", 10**9)
    check_failure(result, "split", "parts is 1000000000; expected a value in [1, 7]", 2)
    result = command(split_command, model, "--parts", 2)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{model}.1-of-2: blocks 0 to 3, ")
    for name in (block_file(0), "config.json", MANIFEST):
        assert (tmp_path / "model.1-of-2" / name).samefile(model / name)
    assert not (tmp_path / "model.2-of-2" / block_file(0)).exists()
    result = command(split_command, model, "--parts", 2)
    check_failure(result, "split", "model.1-of-2 is there already; remove it first")
    (model / block_file(3)).unlink()
    result = command(split_command, model, "--parts", 3)
    check_failure(result, "split", "has block_003.safetensors of")
