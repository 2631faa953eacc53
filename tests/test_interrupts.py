"""Runs that are cut short: the caller is told, nothing hangs or leaks, and the model stays right.

A run fails at a random read or tile, is interrupted between two lines, or is left by its caller.
Whatever it did, the next run must say exactly what an undisturbed model says.
"""

import ast
import errno
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from dials import NEW, PROMPT, answer, in_many_pieces, model_folder, settings
from threads import no_deadlock, open_files, thread_names

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights import linear
from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.folder import block_file
from numpy_bloom.weights.formats.base import Product
from numpy_bloom.weights.formats.floating import BFloat16

WEIGHTS = Path(linear.__file__).parent


@pytest.fixture(autouse=True)
def many_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    in_many_pieces(monkeypatch)
    with no_deadlock(240):
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A model; whoever opens it leaves neither threads nor files behind."""
    before, folder = thread_names(), model_folder(tmp_path)
    yield folder
    assert thread_names() == before
    assert open_files(folder) == []


class Fault:
    """Something that happens once, when reads or tiles have been counted down; see `arm`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._happen: Callable[[], Any] | None = None
        self._left = 0

    def arm(self, after: int, happen: Callable[[], Any]) -> None:
        with self._lock:
            self._happen, self._left = happen, after

    def disarm(self) -> bool:
        """No longer. Tells whether it has happened."""
        with self._lock:
            happened, self._happen = self._happen is None, None
            return happened

    def count(self) -> Any:
        """One more read or tile; what happens at it may raise, or return something."""
        with self._lock:
            self._left -= 1
            if self._happen is None or self._left > 0:
                return None
            happen, self._happen = self._happen, None
            return happen()  # with the lock, so that it is over when `disarm` returns


class Faults:
    """Faults that are planted below a model."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads, self.tiles = Fault(), Fault()
        self._file = folder / block_file(1)
        self._content = self._file.read_bytes()
        real = os.preadv

        def preadv(handle: int, buffers: list[memoryview], offset: int) -> int:
            given = self.reads.count()
            return real(handle, buffers, offset) if given is None else int(given)

        product = BFloat16.product

        def counted(format: BFloat16, x: Floats) -> Product:
            multiply = product(format, x)

            def multiply_counted(*args: Any) -> Any:
                self.tiles.count()
                return multiply(*args)

            return multiply_counted

        monkeypatch.setattr(os, "preadv", preadv)
        monkeypatch.setattr(BFloat16, "product", counted)
        self.kinds: dict[str, tuple[Fault, Callable[[], Any]]] = {
            "input/output error": (self.reads, self._fail),
            "the file ends": (self.reads, lambda: 0),
            "the file is cut": (self.reads, self._cut),
            "Ctrl-C in a tile": (self.tiles, self._interrupt),
            "no memory in a tile": (self.tiles, self._no_memory),
            "signal at a read": (self.reads, lambda: signal.raise_signal(signal.SIGINT)),
            "signal at a tile": (self.tiles, lambda: signal.raise_signal(signal.SIGINT)),
        }

    @staticmethod
    def _fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    @staticmethod
    def _interrupt() -> None:
        raise KeyboardInterrupt

    @staticmethod
    def _no_memory() -> None:
        raise MemoryError

    def _cut(self) -> None:
        os.truncate(self._file, 5000)

    def repair(self) -> bool:
        """Tells whether there was a fault at all."""
        self._file.write_bytes(self._content)
        happened = [fault.disarm() for fault in (self.reads, self.tiles)]
        return any(happened)


def left_half_way(model: Bloom) -> None:
    generation = model.generate(PROMPT, max_new_tokens=NEW)
    next(generation)
    next(generation)


def cut_short(run: Callable[[Bloom], Any], model: Bloom, faults: Faults) -> Any:
    """What a run returns or raises, with no signal on its way any more."""
    try:
        try:
            return run(model)
        finally:
            faults.reads.disarm()
            faults.tiles.disarm()
    except (NumpyBloomError, KeyboardInterrupt, MemoryError) as error:
        return error


@pytest.mark.parametrize("place", [0, 1, 3, 6])
@pytest.mark.parametrize("threads", [1, 2])
def test_random_interruptions(
    folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int, place: int
) -> None:
    """Twenty-five for each setting: 200 in all."""
    memory = settings(folder, threads)[place] + 100_000 * (place > 3)
    random.seed(place)
    with numpy_bloom.load(folder, memory=memory, threads=threads) as model:
        expected = answer(model)
        faults, told = Faults(folder, monkeypatch), 0
        for _ in range(25):
            kind = random.choice(list(faults.kinds))
            fault, happen = faults.kinds[kind]
            fault.arm(random.randrange(1, 60), happen)
            run = random.choice([answer, left_half_way])
            outcome = cut_short(run, model, faults)
            faults.repair()
            if isinstance(outcome, NumpyBloomError):
                told += 1
                assert str(folder) in str(outcome)
            elif isinstance(outcome, BaseException):
                told += 1
            elif run is answer:
                assert outcome == expected, kind
            del outcome
            assert answer(model) == expected, kind
        assert told > 4


def test_failures_in_a_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than there are buffers, at ever later tiles, and no run to the end between them."""
    with numpy_bloom.load(folder, memory=settings(folder, 2)[0], threads=2) as model:
        expected = answer(model)
        faults = Faults(folder, monkeypatch)
        for kind in ("no memory in a tile", "Ctrl-C in a tile", "input/output error"):
            fault, happen = faults.kinds[kind]
            told = 0
            for after in range(1, 40):
                fault.arm(after, happen)
                outcome = cut_short(answer, model, faults)
                told += isinstance(outcome, BaseException)
                assert isinstance(outcome, BaseException) or outcome == expected, kind
                del outcome
            # A read may fail that was made ahead and that nobody asks for, when a run ends.
            assert told >= (30 if kind == "input/output error" else 39), kind
        assert answer(model) == expected


# --- between two lines ----------------------------------------------------------------------------


def safe_lines(path: Path) -> set[int]:
    """Lines at which the interpreter never looks for Ctrl-C, though tracing would let it in: a
    `try`, and the end of a `with`, which is told as its first line. A lock would stay taken."""
    statements = ast.walk(ast.parse(path.read_text()))
    return {node.lineno for node in statements if isinstance(node, ast.With | ast.Try)}


class Interrupt:
    """Ctrl-C at the n-th line of numpy_bloom/weights that this thread executes.

    Attributes:
        lines: how many were executed.
    """

    def __init__(self, after: int) -> None:
        self.lines = 0
        self._after = after

    def __enter__(self) -> "Interrupt":
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._line if frame.f_code.co_filename in OURS else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and frame.f_lineno not in OURS[frame.f_code.co_filename]:
            self.lines += 1
            if self.lines == self._after:
                raise KeyboardInterrupt
        return self._line


OURS = {str(path): safe_lines(path) for path in WEIGHTS.rglob("*.py")}


@pytest.mark.parametrize("threads", [1, 2])
def test_interrupt_between_any_two_lines(folder: Path, threads: int) -> None:
    random.seed(threads)
    memory = settings(folder, threads)[2]

    def say(model: Bloom) -> list[int]:
        return [token.id for token in model.generate(PROMPT[:3], max_new_tokens=2)]

    with numpy_bloom.load(folder, memory=memory, threads=threads) as model:
        expected = say(model)
        with Interrupt(0) as undisturbed:
            assert say(model) == expected
        assert undisturbed.lines > 1000
        interrupted = 0
        for _ in range(100):
            try:
                with Interrupt(random.randrange(1, undisturbed.lines)):
                    assert say(model) == expected
            except KeyboardInterrupt:
                interrupted += 1
            assert say(model) == expected
        assert interrupted > 50
