"""Workers that are of no use, errors of their work, and a scheduler that dies: one clear line."""

import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import NEW, PROMPTS, caches_held, dask, distributed, holders, opened, strike

import numpy_bloom
from numpy_bloom.cluster import workers
from numpy_bloom.cluster.open import LOCAL_SETTINGS
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.running.memory import Needs
from numpy_bloom.weights.folder import block_file


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    with distributed.Client(cluster) as client:
        yield client


@pytest.fixture
def without_package(client: Any) -> Iterator[list[str]]:
    """Workers, of which the first cannot import what it is asked to do."""

    def hide() -> None:
        sys.modules["numpy_bloom"] = None  # type: ignore[assignment]

    def show() -> None:
        sys.modules.pop("numpy_bloom")

    addresses = sorted(client.nthreads())
    client.run(hide, workers=addresses[:1])
    yield addresses
    client.run(show, workers=addresses[:1])


def test_one_that_cannot_run_is_left_out(
    folder: Path, client: Any, without_package: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once; requests are not kept from the others."""
    lame, sound = without_package
    with opened(folder, client) as model, numpy_bloom.load(folder) as one:
        for _ in range(2):
            assert np.array_equal(model(PROMPTS[0]), one(PROMPTS[0]))
        assert holders(model) == [sound]
    assert caplog.text.count("left out") == 1
    assert f"worker {lame} cannot run it: ModuleNotFoundError: " in caplog.text
    assert "; install numpy-bloom there; it is left out" in caplog.text


def test_one_with_another_version_is_left_out(
    folder: Path, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def install(version: str) -> None:
        numpy_bloom.__version__ = version

    lame, sound = sorted(client.nthreads())
    client.run(install, "0.0.9", workers=[lame])
    with opened(folder, client) as model:
        assert holders(model) == [sound]
    told = f"worker {lame} cannot run it: it has numpy-bloom 0.0.9, expected "
    assert caplog.text.count("left out") == caplog.text.count(told) == 1
    client.run(install, numpy_bloom.__version__, workers=[lame])
    with opened(folder, client) as model:
        assert sorted(holders(model)) == [lame, sound]


def test_none_is_of_use(folder: Path, client: Any, tmp_path: Path) -> None:
    with pytest.raises(NumpyBloomError, match=r"of use; worker .* run it: this run needs at least"):
        numpy_bloom.load(folder, cluster=client, memory=1000)
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    with (damaged / block_file(0)).open("r+b") as file:
        file.write(bytes(8))
    with pytest.raises(NumpyBloomError, match=f"of use; worker .*{block_file(0)}") as told_of:
        numpy_bloom.load(damaged, cluster=client)
    assert "\n" not in str(told_of.value)


def test_a_run_that_one_refuses_leaves_nothing_with_the_others(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(folder, client) as model:
        real = model.model._chain.submit

        def submit(place: int, method: str, *arguments: Any) -> Any:
            future = real(place, "refuse" if place else method, *arguments)
            distributed.wait(future)  # the first has done it when the second refuses
            return future

        with monkeypatch.context() as refusing, pytest.raises(AttributeError, match="refuse"):
            refusing.setattr(model.model._chain, "submit", submit)
            model.generate(PROMPTS[0])
        assert 1 in caches_held(model)
        assert model.model.has_room(Needs([8], pass_tokens=8, logit_rows=1))
        assert set(caches_held(model)) == {0}


def test_errors_of_their_work(folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come at once, as they are; a model's own name the worker."""
    with opened(folder, client) as model:
        chain = model.model._chain
        with pytest.raises(KeyError, match="12345"):
            chain.everywhere("token", 12345, 0)
        with pytest.raises(NumpyBloomError, match=r"worker tcp://.*: this run needs"):
            model.generate(PROMPTS[0], max_new_tokens=10**9)
        monkeypatch.setattr(workers, "MOST_SECONDS", 0.1)
        chain.names[0] = "nobody"  # a cluster that has mislaid a share, and does not see it
        with pytest.raises(NumpyBloomError, match="cluster failed: LostError: nobody is not on"):
            chain.results([chain.submit(0, "token", 0, 0)])


def test_a_script_without_a_guard(tmp_path: Path) -> None:
    """Each process imports it, and would start more."""
    script = tmp_path / "script.py"
    script.write_text("import numpy_bloom; numpy_bloom.load(cluster='local:2')")
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback") == 1
    assert 'below `if __name__ == "__main__":`' in ended.stderr.splitlines()[-1]


def test_settings_of_processes_here_are_not_the_programs(folder: Path) -> None:
    """The processes have them, those that are started again as well."""

    def programs() -> dict[str, Any]:
        return {name: dask.config.get(name) for name in LOCAL_SETTINGS}

    def processes() -> list[dict[str, Any]]:
        told = client.run(lambda: dask.config.config)
        return [
            {name: dask.config.get(name, config=config) for name in LOCAL_SETTINGS}
            for config in told.values()
        ]

    before, timeout = programs(), dask.config.get("distributed.deploy.lost-worker-timeout")
    with opened(folder, "local:1") as model:
        client = model.model._chain.workers.client
        assert programs() == before
        assert processes() == [LOCAL_SETTINGS]
        strike(model, 0)
        model(PROMPTS[0])  # waits for the one that is started again
        assert processes() == [LOCAL_SETTINGS]
    assert programs() == before
    assert dask.config.get("distributed.deploy.lost-worker-timeout") == timeout


SCHEDULER = """
import time, distributed
with distributed.LocalCluster(
    n_workers=1, processes=False, protocol="tcp://", dashboard_address=":0"
) as cluster:
    print(cluster.scheduler_address, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def scheduler() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process with a scheduler and a worker, and its address."""
    with subprocess.Popen(
        [sys.executable, "-c", SCHEDULER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def test_versions_that_differ_are_told_in_one_line(
    folder: Path,
    scheduler: tuple[subprocess.Popen[str], str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Dask would warn with a table. Other warnings are left as they are."""
    real = distributed.versions.get_versions

    def get_versions() -> dict[str, Any]:
        warnings.warn("of something else", stacklevel=1)
        told = real()
        return told | {"packages": told["packages"] | {"msgpack": "0.0.9"}}

    monkeypatch.setattr(distributed.versions, "get_versions", get_versions)
    with pytest.warns(UserWarning, match="of something else") as warned:
        numpy_bloom.load(folder, cluster=scheduler[1]).close()
    assert len(warned) == 1
    there = real()["packages"]["msgpack"]
    (told,) = [record.message for record in caplog.records if "versions" in record.message]
    assert told == (
        f"versions differ: Package Client Scheduler Workers; msgpack 0.0.9 {there} {there}"
    )


@pytest.mark.parametrize("during", [False, True])
def test_the_scheduler_dies(
    folder: Path,
    scheduler: tuple[subprocess.Popen[str], str],
    during: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Between two passes, or when one has been sent."""
    process, address = scheduler
    with numpy_bloom.load(folder, cluster=address) as model:
        generation = model.generate(PROMPTS[0], max_new_tokens=NEW)
        next(generation)
        if during:
            real = workers.Workers.results

            def results(*arguments: Any) -> Any:
                process.kill()
                return real(*arguments)

            monkeypatch.setattr(workers.Workers, "results", results)
        else:
            process.kill()
            process.wait()
        told = rf"^the scheduler at {address} is gone; start it again$"
        with pytest.raises(NumpyBloomError, match=told):
            list(generation)
    assert "Traceback" not in capfd.readouterr().err


def test_the_scheduler_hangs(
    folder: Path,
    scheduler: tuple[subprocess.Popen[str], str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(workers, "SILENT_SECONDS", 0.5)
    process, address = scheduler
    with numpy_bloom.load(folder, cluster=address) as model:
        process.send_signal(signal.SIGSTOP)
        told = rf"^the scheduler at {address} has not answered for 0.5 s; start it again$"
        with pytest.raises(NumpyBloomError, match=told):
            model.generate(PROMPTS[0])
    assert "Traceback" not in capfd.readouterr().err
