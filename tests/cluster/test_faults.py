"""Workers that die or hang, come and go: the text goes on as it would have."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import (
    NEW,
    PROMPTS,
    caches_held,
    distributed,
    generated,
    holders,
    opened,
    pids,
    strike,
    texts,
)
from support.dials import in_many_pieces

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.cluster import chain, share, workers
from numpy_bloom.cluster import model as cluster_model
from numpy_bloom.cluster.model import ClusterModel
from numpy_bloom.cluster.open import LOCAL_SETTINGS
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.running.memory import Needs


@pytest.fixture(scope="module")
def one(folder: Path) -> Iterator[Bloom]:
    with numpy_bloom.load(folder) as model:
        yield model


@pytest.fixture(scope="module")
def spread(folder: Path) -> Iterator[Bloom]:
    """Dask gives up a worker that hangs after 5 seconds at least, but looks as often as it is told
    that a worker may live."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LOCAL_SETTINGS, "distributed.scheduler.worker-ttl", "500ms")
        with opened(folder, "local:3") as model:
            yield model


def in_pass(monkeypatch: pytest.MonkeyPatch, number: int, work: Callable[[], Any]) -> list[int]:
    """Do something when all tasks of the n-th pass from now on have been sent.

    Returns:
        A list of all passes that were sent since.
    """
    sent: list[int] = []
    real = ClusterModel._arrived

    def arrived(self: ClusterModel, chains: Any) -> Any:
        sent.append(len(sent))
        if len(sent) == number:
            work()
        return real(self, chains)

    monkeypatch.setattr(ClusterModel, "_arrived", arrived)
    return sent


@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_worker_dies_between_passes(one: Bloom, spread: Bloom, place: int) -> None:
    expected = one.generate(PROMPTS[0], max_new_tokens=NEW)
    generation = spread.generate(PROMPTS[0], max_new_tokens=NEW)
    for number, token in enumerate(expected):
        if number == 3:
            strike(spread, place)
        assert next(generation).id == token.id


@pytest.mark.parametrize(("place", "number"), [(0, 1), (-1, 1), (1, 4), (-1, 5)])
def test_a_worker_dies_during_a_pass(
    one: Bloom, spread: Bloom, place: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first pass, that takes in the prompts, or in a later one, of several texts."""
    passes = in_pass(monkeypatch, number, lambda: strike(spread, place))
    assert texts(spread) == texts(one)
    assert len(passes) > NEW  # some were done again


def test_a_worker_dies_between_requests(one: Bloom, spread: Bloom) -> None:
    strike(spread, -1)
    assert spread.score(PROMPTS[0]).tobytes() == one.score(PROMPTS[0]).tobytes()
    strike(spread, 0)
    assert spread.model.has_room(Needs([5], pass_tokens=5, logit_rows=1))


def test_a_worker_dies_when_its_result_is_on_its_way(
    one: Bloom, spread: Bloom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task is done, but nobody can have what it gave."""
    real = ClusterModel._arrived

    def arrived(self: ClusterModel, chains: Any) -> Any:
        monkeypatch.setattr(ClusterModel, "_arrived", real)
        with self._chain.workers.client.as_current():
            distributed.wait(chains)
        strike(spread, -1)
        return real(self, chains)

    monkeypatch.setattr(ClusterModel, "_arrived", arrived)
    assert texts(spread) == texts(one)


def test_workers_die_one_after_the_other(
    one: Bloom, spread: Bloom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second while the loss of the first is repaired."""
    real = chain.Chain.repair
    others = pids(spread).keys() - {holders(spread)[0]}

    def repair(self: chain.Chain) -> None:
        monkeypatch.setattr(chain.Chain, "repair", real)
        os.kill(next(pid for name, pid in pids(spread).items() if name in others), signal.SIGKILL)
        real(self)

    monkeypatch.setattr(chain.Chain, "repair", repair)
    in_pass(monkeypatch, 3, lambda: strike(spread, 0))
    assert texts(spread) == texts(one)
    assert chain.Chain.repair is real


@pytest.mark.parametrize("options", [{"draft_model": "prompt-lookup"}, {"num_samples": 2}])
def test_all_kinds_of_texts_go_on(
    one: Bloom, spread: Bloom, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"temperature": 0.8, "seed": 1, **options}
    expected = texts(one, **options)
    in_pass(monkeypatch, 3, lambda: strike(spread, -1))
    assert texts(spread, **options) == expected


def test_beams_go_on(one: Bloom, spread: Bloom, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(model: Bloom) -> list[int]:
        search = model.beam_search(PROMPTS[0], num_beams=3, max_new_tokens=NEW)
        return [token.id for token in search]

    expected = found(one)
    in_pass(monkeypatch, 3, lambda: strike(spread, 0))
    assert found(spread) == expected


def test_a_score_is_computed_again(
    one: Bloom, spread: Bloom, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_pass(monkeypatch, 1, lambda: strike(spread, -1))
    assert spread.score(PROMPTS[0]).tobytes() == one.score(PROMPTS[0]).tobytes()


def test_rebuilding_takes_no_larger_passes_than_the_run(
    spread: Bloom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no room for them."""
    largest = []
    real = ClusterModel._send

    def send(self: ClusterModel, ids: Any, leg: Any, caches: Any) -> Any:
        largest.append(len(ids))
        return real(self, ids, leg, caches)

    monkeypatch.setattr(ClusterModel, "_send", send)
    generation = spread.generate(PROMPTS[1][:2], max_new_tokens=NEW)
    for _ in range(NEW - 2):
        next(generation)
    strike(spread, 0)
    next(generation)
    assert max(largest) == 2
    assert largest[-4:] == [2, 2, 2, 1]  # six tokens, and the one that was to come
    largest.clear()
    next(generation)
    assert largest == [1]  # all is there again


def test_a_new_share_keeps_no_cache_that_nobody_holds(spread: Bloom) -> None:
    model, needs = spread.model, Needs([8, 8], pass_tokens=4, logit_rows=1)
    kept, given_up = model.prepare(needs)
    del given_up
    for place in (None, 0):
        if place is not None:
            strike(spread, place)
        assert model.has_room(needs)
        assert len(set(caches_held(spread))) == 1
    model.run([np.array(PROMPTS[0][:4])], [kept])


def test_a_worker_hangs(one: Bloom, spread: Bloom) -> None:
    generation = spread.generate(PROMPTS[0], max_new_tokens=NEW)
    next(generation)
    strike(spread, 0, signal.SIGSTOP)
    list(generation)
    assert generation.token_ids == [token for token, _ in generated(one, PROMPTS[0])]


def test_losses_without_end(one: Bloom, spread: Bloom, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass may lose some, but a pass that loses workers each time it is done is given up."""
    monkeypatch.setattr(cluster_model, "MOST_LOSSES", 2)
    struck = []

    def struck_before(method: str) -> None:
        real = getattr(ClusterModel, method)

        def work(*arguments: Any, **options: Any) -> Any:
            struck.append(method)
            strike(spread, 0)
            return real(*arguments, **options)

        losing.setattr(ClusterModel, method, work)

    with monkeypatch.context() as losing:
        struck_before("run")
        expected = [token.id for token in one.generate(PROMPTS[0], max_new_tokens=2)]
        assert [token.id for token in spread.generate(PROMPTS[0], max_new_tokens=2)] == expected
    with monkeypatch.context() as losing:
        struck_before("_send")
        told = "^workers were lost 2 times in a row; their logs may tell why"
        with pytest.raises(NumpyBloomError, match=told):
            generated(spread, PROMPTS[0])
    assert struck == ["run", "run", "_send", "_send"]
    assert texts(spread) == texts(one)


def test_a_text_of_a_file_says_how_to_go_on(one: Bloom, spread: Bloom, tmp_path: Path) -> None:
    """Keys and values that came from it cannot be computed again, but it is whole."""
    file = tmp_path / "kept"
    generation = spread.generate(PROMPTS[0], max_new_tokens=NEW, prompt_cache=file)
    next(generation)
    del generation
    resumed = spread.resume(file)
    next(resumed), next(resumed)
    strike(spread, 0)
    with pytest.raises(NumpyBloomError, match="--resume"):
        list(resumed)
    del resumed
    again = [token.id for token in spread.resume(file)]
    assert again == [token for token, _ in generated(one, PROMPTS[0])]


def test_who_comes_and_goes(folder: Path, one: Bloom, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that joins is used by the next request. With no worker left there is one error."""
    expected = [token for token, _ in generated(one, PROMPTS[0])]
    monkeypatch.setattr(workers, "MOST_SECONDS", 0.1)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
        opened(folder, client) as model,
    ):
        assert len(holders(model)) == 1
        cluster.scale(2)
        client.wait_for_workers(2, timeout=30)
        generation = model.generate(PROMPTS[0], max_new_tokens=NEW)
        assert len(holders(model)) == 2
        next(generation)
        cluster.scale(3)  # not before the next request
        client.wait_for_workers(3, timeout=30)
        list(generation)
        assert generation.token_ids == expected
        assert len(holders(model)) == 2
        generation = model.generate(PROMPTS[0], max_new_tokens=NEW)
        next(generation)
        assert len(holders(model)) == 3
        cluster.scale(0)
        nobody = r"^the cluster has no worker; start one"
        with pytest.raises(NumpyBloomError, match=nobody):
            next(generation)
        del generation
        with pytest.raises(NumpyBloomError, match=nobody):
            model.generate(PROMPTS[0])
        cluster.scale(1)
        client.wait_for_workers(1, timeout=30)
        assert [token for token, _ in generated(model, PROMPTS[0])] == expected


def test_what_is_pinned_after_a_loss(
    folder: Path, one: Bloom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who takes a part as well has less memory for its own: all tell anew what they hold."""
    in_many_pieces(monkeypatch)
    prompt = PROMPTS[0][:3]
    expected = [token for token, _ in generated(one, prompt)]
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        with opened(folder, client) as model:
            generated(model, prompt)
            needed = sum(one._model.memory_for_all for one in shares(model))
            memory = needed - model.model.weight_bytes // 8
        with opened(folder, client, memory=memory) as model:
            generation = model.generate(prompt, max_new_tokens=NEW)
            next(generation)
            assert model.model.bytes_pinned == model.model.weight_bytes
            cluster.scale(1)
            list(generation)
            assert len(set(holders(model))) == 1
            pinned = sum(one._model.bytes_pinned for one in shares(model))
            assert 0 < model.model.bytes_pinned == pinned < model.model.weight_bytes
        assert generation.token_ids == expected


def shares(model: Bloom) -> list[share.Share]:
    """Those of workers in this process."""
    return [share._here[name] for name in model.model._chain.names]


@pytest.mark.parametrize("kill", [os.killpg, os.kill])
def test_an_interrupted_command_leaves_no_process(kill: Callable[[int, int], None]) -> None:
    """Ctrl-C goes to all processes of a terminal; `kill -INT` to one."""
    with generating("--show-tokens", "--max-new-tokens", "100000") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Token 1 ")
        kill(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=40)
        assert told.endswith("generate: interrupted\n")
        assert "Traceback" not in told
        assert process.returncode == 130
        for handle in _of_session(process.pid):
            assert select.select([handle], [], [], 10)[0], "it does not end"
            os.close(handle)


@pytest.mark.parametrize("seconds", [0, 0.1, 0.3])
def test_ctrl_c_while_processes_start(seconds: float) -> None:
    """A cluster that has not started cannot be ended; one that has is."""
    with generating() as process:
        while len(handles := _of_session(process.pid)) < 2:
            for handle in handles:
                os.close(handle)
        for handle in handles:
            os.close(handle)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=40)
        assert (process.returncode, told) == (130, "\ngenerate: interrupted\n")


@contextmanager
def generating(*options: str) -> Iterator[subprocess.Popen[str]]:
    """The command on two processes of its own. Nothing is left of them if a test fails."""
    command = [sys.executable, "-m", "numpy_bloom.generate", "x", "--cluster", "local:2", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


def _of_session(session: int) -> list[int]:
    """Handles, of which one can be waited for, on the processes that are left of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(os.pidfd_open(int(stat.parent.name)))
        except OSError:  # it ended meanwhile
            continue
    return found
