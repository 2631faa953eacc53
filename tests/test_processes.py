"""Processes that multiply beside this one: the same bits as threads, whenever they come and go."""

import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import Checkpoint, byte_ids
from support.conversions import converted
from support.threads import no_deadlock

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.running.memory import Needs
from numpy_bloom.speed import measure
from numpy_bloom.weights import processes, store
from numpy_bloom.weights.formats import FORMATS, base
from numpy_bloom.weights.processes import MOST_TOKENS, PROCESS_BYTES, Processes
from numpy_bloom.weights.shared import SharedPages

IDS = byte_ids("Todos los seres humanos")
PLENTY = 4 << 30
LOST = "a process that helped to compute has ended; threads do its part"

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="only Linux has memory that processes share by handle"
)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processes help with small models, whose matrices have several tiles."""
    monkeypatch.setattr(base, "LEAST_ROWS", 1)
    monkeypatch.setattr(base, "TILE_ELEMENTS", 1 << 14)
    monkeypatch.setattr(store, "CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(store, "WORTH_PROCESSES", 1)
    with no_deadlock(120):
        yield


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A model of a format, with blocks of int4 in every matrix of a block but one."""
    folders: dict[str, Path] = {}

    def folder(dtype: str) -> Path:
        if dtype not in folders:
            checkpoint = Checkpoint(heads=4, hidden=256, blocks=2, seed=4)
            checkpoint.config["eos_token_id"] = None
            where = tmp_path_factory.mktemp(dtype)
            folders[dtype] = converted(checkpoint, where, dtype, head_dtype=dtype)
        return folders[dtype]

    return folder


@pytest.fixture
def folder(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("bfloat16")


@pytest.fixture
def helped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each product that processes had a part in."""
    tokens: list[int] = []
    multiply = Processes.multiply

    def counted(self: Processes, matrix: int, *others: Any) -> None:
        tokens.append(len(others[-1]))
        multiply(self, matrix, *others)

    monkeypatch.setattr(Processes, "multiply", counted)
    return tokens


def children() -> list[int]:
    """Processes that help this one, and any that it has started and not seen end."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            command = (process / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
            continue
        if int(parent) == os.getpid() and (not command or "weights.processes" in command):
            found.append(int(process.name))
    return found


def opened(folder: Path, threads: int = 2, memory: int = PLENTY) -> Bloom:
    """A model that has made room for a run, and whose processes are ready."""
    model = numpy_bloom.load(folder, memory=memory, threads=threads)
    model.generate(IDS)
    model.model.store.wait_for_processes()
    assert model.model.store.processes
    return model


def logits(model: Bloom, tokens: int = 1) -> bytes:
    """Of the tokens after a text of two."""
    [cache] = model.model.prepare(Needs([2 + tokens], pass_tokens=tokens + 2, logit_rows=1))
    model.model.run([np.array(IDS[:2])], [cache])
    return model.model.run([np.array(IDS[2 : 2 + tokens])], [cache]).tobytes()


def by_threads(folder: Path, monkeypatch: pytest.MonkeyPatch, tokens: int = 1) -> bytes:
    with monkeypatch.context() as patch, numpy_bloom.load(folder, threads=1) as model:
        patch.setattr(store, "WORTH_PROCESSES", PLENTY)
        return logits(model, tokens)


@pytest.mark.parametrize("dtype", FORMATS)
def test_same_bits(
    model_folder: Callable[[str], Path],
    dtype: str,
    helped: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = model_folder(dtype)
    with opened(folder, threads=3) as model:
        assert len(children()) == 2
        for tokens in (1, 2, MOST_TOKENS, MOST_TOKENS + 1):
            helped.clear()
            assert logits(model, tokens) == by_threads(folder, monkeypatch, tokens)
            assert set(helped) == {1, 2, tokens} - {MOST_TOKENS + 1}  # 1: of the last, its head
    assert children() == []


def test_nothing_is_left(folder: Path) -> None:
    handles = sorted(Path("/proc/self/fd").iterdir())
    with opened(folder) as model:
        [child] = children()
        assert os.getsid(child) != os.getsid(0)  # Ctrl-C is not for it
        logits(model)
    assert children() == []
    assert sorted(Path("/proc/self/fd").iterdir()) == handles


PARENT = """
import sys, time
import numpy_bloom
from numpy_bloom.weights import store
store.WORTH_PROCESSES = 1
model = numpy_bloom.load(sys.argv[1], threads=2, memory="4GB")
tokens = model.generate([5, 6])
while not model.model.store.processes:
    time.sleep(0.01)
print(model.model.store._processes._all[0]._popen.pid, flush=True)
time.sleep(60)
"""


def test_killed_parent(folder: Path) -> None:
    """What it has started ends as well."""
    command = [sys.executable, "-c", PARENT, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = Path("/proc", parent.stdout.readline().strip())
        assert child.exists()
        parent.kill()
    until = time.monotonic() + 60
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_one_that_is_killed(
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    helped: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its part is done here, by threads from then on; that is told once."""
    expected = by_threads(folder, monkeypatch)
    with opened(folder, threads=3) as model, caplog.at_level(logging.WARNING, "numpy_bloom"):
        assert logits(model) == expected
        os.kill(children()[0], signal.SIGKILL)
        helped.clear()
        assert logits(model) == expected
        assert len(helped) == 1
        assert logits(model) == expected
        assert len(helped) == 1
    assert [record.getMessage() for record in caplog.records] == [LOST]
    assert children() == []


@pytest.mark.parametrize("program", ["/bin/false", "/bin/echo"])
def test_a_program_that_is_no_python(
    folder: Path, program: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends before it is ready, or prints what is no answer."""
    expected = by_threads(folder, monkeypatch)
    monkeypatch.setattr(sys, "executable", program)
    with numpy_bloom.load(folder, threads=2, memory=PLENTY) as model:
        model.generate(IDS)
        model.model.store.wait_for_processes()
        assert model.model.store.processes is None
        assert logits(model) == expected
    assert [record.getMessage() for record in caplog.records] == [LOST]


def test_one_that_is_late(folder: Path, helped: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = by_threads(folder, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(processes._Process, "look", lambda self: None)
        with numpy_bloom.load(folder, threads=2, memory=PLENTY) as model:
            assert logits(model) == expected
            assert helped == []


@pytest.mark.parametrize("missing", ["memory", "program", "name of the program"])
def test_systems_without(
    folder: Path, missing: str, helped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = by_threads(folder, monkeypatch)
    if missing == "memory":
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr(sys, "executable", "/nowhere" if missing == "program" else None)
    with numpy_bloom.load(folder, threads=2, memory=PLENTY) as model:
        assert logits(model) == expected
    assert helped == []
    assert children() == []


def test_ctrl_c(folder: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """While this process waits for an answer; what was left of that harms nobody."""
    expected = {tokens: by_threads(folder, monkeypatch, tokens) for tokens in (1, MOST_TOKENS)}
    real, left = processes._next_message, 0

    def interrupted(handle: int, nbytes: int, *seconds: float) -> bytes:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return real(handle, nbytes, *seconds)

    with opened(folder) as model:
        monkeypatch.setattr(processes, "_next_message", interrupted)
        for place in range(1, 40, step):
            left = place
            for tokens in (1, MOST_TOKENS) * 3:
                try:
                    assert logits(model, tokens) == expected[tokens]
                except KeyboardInterrupt:
                    assert left == 0
            assert left < 0
        assert model.model.store.processes


def test_ctrl_c_while_one_is_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on with what was cut short while the others are at the next pass."""
    expected = by_threads(folder, monkeypatch)
    real, left = processes._next_message, 0

    def interrupted(handle: int, nbytes: int, *seconds: float) -> bytes:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return real(handle, nbytes, *seconds)

    with opened(folder, threads=3) as model:
        monkeypatch.setattr(processes, "_next_message", interrupted)
        behind = min(children())
        for tokens in (MOST_TOKENS, 2, MOST_TOKENS, 3):
            os.kill(behind, signal.SIGSTOP)
            left = 1
            with pytest.raises(KeyboardInterrupt):
                logits(model, tokens)
            threading.Timer(0.1, os.kill, (behind, signal.SIGCONT)).start()
            assert logits(model) == expected
        assert model.model.store.processes


def test_one_that_hangs(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = by_threads(folder, monkeypatch)
    with opened(folder) as model:
        monkeypatch.setattr(processes, "HANGS_SECONDS", 0.2)  # of one that is ready
        os.kill(children()[0], signal.SIGSTOP)
        with caplog.at_level(logging.WARNING, "numpy_bloom"):
            assert logits(model) == expected
        assert model.model.store.processes is None
    assert children() == []


def test_a_forked_process(folder: Path) -> None:
    """It computes alone, and leaves the weights as they are when it closes its model."""
    with opened(folder) as model:
        expected = logits(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
            child = os.fork()
        if child == 0:
            right = model.model.store.processes is None and logits(model) == expected
            model.close()
            os._exit(0 if right else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert logits(model) == expected
        assert model.model.store.processes


def test_many_open_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers above 1,023 are too large for `select`."""
    expected = by_threads(folder, monkeypatch)
    monkeypatch.setattr(processes, "LOOKING_SECONDS", 0)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], 4096), before[1]))
    with ExitStack() as files:
        for _ in range(1100):
            files.enter_context(Path(os.devnull).open())
        with opened(folder) as model:
            assert logits(model) == expected
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_speed_is_measured_with_them(folder: Path, helped: list[int]) -> None:
    """The first pass begins when they are ready."""
    with numpy_bloom.load(folder, threads=2, memory=PLENTY) as model:
        measure(model, prompt_tokens=2, new_tokens=3)
    assert len(helped) == 4 * 9  # matrices of two blocks, and the head


def test_memory_for_the_largest_model_costs_nothing() -> None:
    """352 GB, of which nothing is written."""
    pages = SharedPages.make(dict.fromkeys(range(22_000), 16 << 20))
    assert pages is not None
    pages.keep([0])
    pages.close()


def test_the_dial(folder: Path) -> None:
    """Processes need room beside all else; without it there are none, and what they had is free."""
    with opened(folder) as model:
        needed, more = model.model.memory_for_all, model.model.store.process_bytes
        assert more > PROCESS_BYTES
    for memory, count in ((needed + more, 1), (needed + more - 1, 0)):
        with numpy_bloom.load(folder, threads=2, memory=memory) as model:
            tokens = model.generate(IDS)
            assert len(children()) == count
            model.model.turn(needed - model.model.weight_bytes // 2)
            assert children() == []
            assert 0 < model.model.bytes_pinned < model.model.weight_bytes
            assert next(tokens)


def test_memory_of_weights_that_are_pinned_no_more(folder: Path) -> None:
    def shared() -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("RssShmem:")[2].split()[0])

    with opened(folder) as model:
        nbytes = model.model.weight_bytes
        before = shared()
        model.model.turn(model.model.memory_for_all - nbytes // 2)
        assert before - shared() > nbytes // 3


def test_what_a_process_takes(folder: Path) -> None:
    """Beside what it shares with this one."""
    with opened(folder) as model:
        logits(model, MOST_TOKENS)
        [child] = children()
        status = Path(f"/proc/{child}/status").read_text()
        own = sum(
            int(status.partition(f"{kind}:")[2].split()[0]) for kind in ("RssAnon", "RssFile")
        )
    assert own * 1024 < PROCESS_BYTES
