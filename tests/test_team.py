"""The team of threads: each item once, errors to the caller, and nothing left behind."""

import gc
import itertools
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing
from queue import SimpleQueue

import numpy as np
import pytest
from support.threads import no_deadlock, thread_names

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.team import Team


@pytest.fixture(autouse=True)
def watch() -> Iterator[None]:
    with no_deadlock(60):
        yield


@pytest.fixture(params=[1, 2, 5])
def team(request: pytest.FixtureRequest) -> Iterator[Team]:
    with closing(Team(request.param)) as team:
        yield team


@pytest.fixture
def on_interrupt() -> Iterator[threading.Event]:
    """Is set when Ctrl-C arrives, which counts once."""
    arrived = threading.Event()

    def interrupted(*_: object) -> None:
        if not arrived.is_set():
            arrived.set()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupted)
    yield arrived
    signal.signal(signal.SIGINT, before)


def work_on(team: Team, items: Iterator[int]) -> list[int]:
    """Which items were worked on, in any order."""
    done: list[int] = []
    team.run(done.append, items)
    return sorted(done)


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_each_item_once(team: Team, count: int) -> None:
    for _ in range(3):
        assert work_on(team, iter(range(count))) == list(range(count))
        generator = (number for number in range(count))  # takes one caller at a time
        assert work_on(team, generator) == list(range(count))


def test_items_are_asked_for_by_one_thread_at_a_time() -> None:
    numbers, inside = iter(range(50)), threading.Lock()

    class Items(Iterator[int]):
        def __next__(self) -> int:
            assert inside.acquire(blocking=False)
            for _ in range(20):
                os.sched_yield()  # the others' turn
            inside.release()
            return next(numbers)

    with closing(Team(3)) as team:
        assert work_on(team, Items()) == list(range(50))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_all_threads_take_part(threads: int) -> None:
    """Each item needs all threads at the same time."""
    barrier, names = threading.Barrier(threads), SimpleQueue[int]()

    def work(_item: int) -> None:
        barrier.wait(60)
        names.put(threading.get_ident())

    with closing(Team(threads)) as team:
        for _ in range(3):
            team.run(work, iter(range(threads)))
            workers = {names.get() for _ in range(threads)}
            assert len(workers) == threads
            assert threading.get_ident() in workers


def test_the_caller_waits_for_helpers() -> None:
    """The caller runs out of items while a helper still works on one."""
    caller, helper_began, others_done = threading.get_ident(), threading.Event(), threading.Event()
    done: list[str] = []

    def items() -> Iterator[int]:
        yield 0
        yield 1
        if threading.get_ident() == caller:
            others_done.set()  # and there are none left

    def work(_item: int) -> None:
        if threading.get_ident() == caller:
            helper_began.wait(60)
            done.append("caller")
        else:
            helper_began.set()
            others_done.wait(60)
            done.append("helper")

    with closing(Team(2)) as team:
        team.run(work, items())
        assert done == ["caller", "helper"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("item", [0, 7, 99])
def test_error_in_work(team: Team, item: int, error: BaseException) -> None:
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == item:
            raise error

    with pytest.raises(type(error)) as raised:
        team.run(work, iter(range(100)))
    assert raised.value is error
    assert sorted(begun) == list(range(len(begun)))
    assert item in begun
    count = len(begun)
    assert work_on(team, iter(range(20))) == list(range(20))  # all threads are there again
    assert len(begun) == count  # and none goes on with what failed


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), NumpyBloomError("disk")])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_error_in_items(team: Team, count: int, error: BaseException) -> None:
    def items() -> Iterator[int]:
        yield from range(count)
        raise error

    done: list[int] = []
    with pytest.raises(type(error)) as raised:
        team.run(done.append, items())
    assert raised.value is error
    assert sorted(done) == list(range(count))
    assert work_on(team, iter(range(20))) == list(range(20))


@pytest.mark.parametrize("by_caller", [True, False])
def test_nothing_is_worked_on_after_an_error(by_caller: bool) -> None:
    """One thread fails while the other works: it finishes its item, and begins no other."""
    caller, failed, began = threading.get_ident(), threading.Event(), threading.Event()
    finished: list[int] = []

    def items() -> Iterator[int]:
        yield from range(2)
        failed.wait(60)
        yield from range(2, 100)

    def work(number: int) -> None:
        if (threading.get_ident() == caller) == by_caller:
            began.wait(60)
            failed.set()
            raise KeyboardInterrupt
        began.set()
        failed.wait(60)
        finished.append(number)

    with closing(Team(2)) as team:
        with pytest.raises(KeyboardInterrupt):
            team.run(work, items())
        # The other thread had one item in hand; it may have begun a second in the very moment of
        # the failure, but never works through the rest.
        assert 1 <= len(finished) <= 2
        count = len(finished)
        assert work_on(team, iter(range(20))) == list(range(20))
        assert len(finished) == count


def test_interrupt_while_the_caller_waits(on_interrupt: threading.Event) -> None:
    """Ctrl-C when the caller has nothing left to do: the helper's item is waited for all the same.

    What the helper works with may be overwritten afterwards.
    """
    caller, began, none_left = threading.get_ident(), threading.Event(), threading.Event()
    done: list[int] = []

    def items() -> Iterator[int]:
        yield from range(2)
        none_left.set()

    def work(number: int) -> None:
        if threading.get_ident() == caller:
            began.wait(60)
        else:
            began.set()
            none_left.wait(60)
            while not on_interrupt.is_set():  # one that comes just before the wait is seen after it
                signal.pthread_kill(caller, signal.SIGINT)
            sum(range(1_000_000))  # the caller could be gone by now
        done.append(number)

    with closing(Team(2)) as team:
        with pytest.raises(KeyboardInterrupt):
            team.run(work, items())
        assert sorted(done) == [0, 1]
        assert work_on(team, iter(range(20))) == list(range(20))


def test_an_error_keeps_nothing_alive() -> None:
    """No cycle of error, traceback and job: the arrays of the pass go when the error goes."""
    gc.collect()
    gc.disable()
    try:
        for threads, wrong in itertools.product([1, 2], [0, 50]):
            array = np.zeros(1)
            kept = weakref.ref(array)

            def work(number: int, array: object = array, wrong: int = wrong) -> None:
                if number == wrong:
                    raise ValueError("no")

            with closing(Team(threads)) as team, pytest.raises(ValueError, match="no"):
                team.run(work, iter(range(100)))
            del work, array
            assert kept() is None
    finally:
        gc.enable()


def test_one_thread_starts_none() -> None:
    before = thread_names()
    with closing(Team(1)) as team:
        assert work_on(team, iter(range(5))) == list(range(5))
        assert thread_names() == before


def test_close_ends_the_threads() -> None:
    before = thread_names()
    team = Team(4)
    assert thread_names() == before
    work_on(team, iter(range(5)))
    assert thread_names() == sorted([*before, *["numpy-bloom-team"] * 3])
    team.close()
    assert thread_names() == before
    team.close()
    with pytest.raises(NumpyBloomError, match="closed"):
        team.run(print, iter(range(5)))
    assert thread_names() == before


def test_close_by_a_helper() -> None:
    """As the garbage collector may do, which runs in whatever thread it is due."""
    before, caller, team = thread_names(), threading.get_ident(), Team(2)
    closed, helpers = threading.Event(), list[threading.Thread]()

    def work(_item: int) -> None:
        if threading.get_ident() == caller:
            assert closed.wait(30)
        else:
            team.close()
            helpers.append(threading.current_thread())
            closed.set()

    team.run(work, iter(range(2)))
    for helper in helpers:
        helper.join()
    assert thread_names() == before
