"""Runs that are cut short: the caller is told, nothing hangs or leaks, and the model stays right.

A run fails at a random read or tile, is interrupted between two lines, or is left by its caller.
Whatever it did, the next run must say exactly what an undisturbed model says.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.dials import NEW, PROMPT, answer, model_folder, settings
from support.interruptions import Faults, Interrupt
from support.threads import open_files, thread_names

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights import linear

pytestmark = pytest.mark.usefixtures("many_pieces")

WEIGHTS = list(Path(linear.__file__).parent.rglob("*.py"))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A model; whoever opens it leaves neither threads nor files behind."""
    before, folder = thread_names(), model_folder(tmp_path)
    yield folder
    assert thread_names() == before
    assert open_files(folder) == []


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
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: int, threads: int, place: int
) -> None:
    """A hundred, or four hundred if they are asked for."""
    memory = settings(folder, threads)[place] + 100_000 * (place > 3)
    random.seed(place)
    with numpy_bloom.load(folder, memory=memory, threads=threads) as model:
        expected = answer(model)
        faults, told = Faults(folder, monkeypatch), 0
        for _ in range(48 // step):
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
        assert told > 8 // step


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


@pytest.mark.parametrize("threads", [1, 2])
def test_interrupt_between_any_two_lines(folder: Path, step: int, threads: int) -> None:
    random.seed(threads)
    memory = settings(folder, threads)[2]

    def say(model: Bloom) -> list[int]:
        return [token.id for token in model.generate(PROMPT[:3], max_new_tokens=2)]

    with numpy_bloom.load(folder, memory=memory, threads=threads) as model:
        expected = say(model)
        with Interrupt(0, WEIGHTS) as undisturbed:
            assert say(model) == expected
        assert undisturbed.lines > 1000
        interrupted = 0
        for _ in range(120 // step):
            try:
                with Interrupt(random.randrange(1, undisturbed.lines), WEIGHTS):
                    assert say(model) == expected
            except KeyboardInterrupt:
                interrupted += 1
            assert say(model) == expected
        assert interrupted > 60 // step
