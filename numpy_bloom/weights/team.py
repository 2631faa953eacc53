"""Our own threads: NumPy lets go of the interpreter's lock while it computes.

BLAS is held to one thread while the team works (`one_blas_thread`), and the team deals tiles to all
cores itself: widening a tile and multiplying it then happen in the cache of one core.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from numpy_bloom.errors import NumpyBloomError

Item = TypeVar("Item")


class _Job(Generic[Item]):
    """Items that several threads take one by one, until they are gone or a thread fails."""

    def __init__(self, work: Callable[[Item], object], items: Iterator[Item]) -> None:
        self._work = work
        self._items = items
        self._lock = threading.Lock()  # an iterator may be a generator, which takes one caller
        self.errors: list[BaseException] = []
        self._failed = False
        self._begun: list[None] = []  # one for each helper
        self._ended: list[None] = []
        self._ends: SimpleQueue[None] = SimpleQueue()  # wakes who waits for them

    def take_part(self) -> None:
        """Work on items until there are no more, or a thread has failed."""
        while True:
            with self._lock:
                if self._failed:
                    return
                try:
                    item = next(self._items)
                except StopIteration:
                    return
            self._work(item)

    def help(self) -> None:
        """Take part; errors are for the caller of `run`."""
        self._begun.append(None)
        try:
            self.take_part()
        except BaseException as error:
            self.fail(error)
        self._ended.append(None)
        self._ends.put(None)

    def fail(self, error: BaseException) -> None:
        """No item is to be begun any more."""
        if not self._failed:
            self.errors.append(error)
        self._failed = True

    def wait(self) -> None:
        """Wait for the helpers that have begun. One that begins later finds nothing to do.

        Ends are counted in `_ended`, so that nothing is lost if this is interrupted and repeated.
        """
        while len(self._ended) < len(self._begun):
            self._ends.get()

    def wait_whatever_comes(self) -> None:
        """Wait; one more Ctrl-C says nothing new, and the helpers still use the caller's arrays."""
        while True:
            try:
                self.wait()
                return
            except KeyboardInterrupt:
                continue

    def forget(self) -> None:
        """Let go of all arrays, for a helper that wakes up late still holds this job."""
        with self._lock:
            self._items = iter(())
            del self._work


class Team:
    """The calling thread and `threads - 1` helpers, which wait between jobs.

    Args:
        threads: how many work at once, at least 1.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._helpers: list[tuple[threading.Thread, SimpleQueue[_Job[Any] | None]]] = []
        self._closed = False

    def run(self, work: Callable[[Item], object], items: Iterator[Item]) -> None:
        """Call `work` once for each item, from several threads, in no fixed order.

        Raises:
            BaseException: the first that `work` or `items` raised, or Ctrl-C; no item is begun
                after it, and none is still worked on when it reaches the caller.
            NumpyBloomError: the team was closed.
        """
        if self._closed:
            raise NumpyBloomError("the model was closed; load it again")
        while len(self._helpers) < self.threads - 1:
            self._hire()
        job = _Job(work, items)
        try:
            for _, queue in self._helpers:
                queue.put(job)
            job.take_part()
            job.wait()
        except BaseException as error:  # Ctrl-C comes between any two lines above
            job.fail(error)
            job.wait_whatever_comes()
        job.forget()
        if job.errors:  # taken out: it holds this frame, and a cycle would keep the pass's arrays
            raise job.errors.pop(0)

    def _hire(self) -> None:
        queue: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        thread = threading.Thread(
            target=_serve, args=(queue,), name="numpy-bloom-team", daemon=True
        )
        thread.start()
        self._helpers.append((thread, queue))

    def close(self) -> None:
        """Send the helpers home."""
        self._closed = True
        for _, queue in self._helpers:
            queue.put(None)
        for thread, _ in self._helpers:
            if thread is not threading.current_thread():  # the garbage collector runs in any
                thread.join()
        self._helpers.clear()


def _serve(queue: "SimpleQueue[_Job[Any] | None]") -> None:
    with np.errstate(invalid="ignore", over="ignore"):  # of one thread: see `Model.computing`
        while (job := queue.get()) is not None:
            job.help()
            del job  # holds the arrays of the pass


@cache
def _blas() -> list[Any]:
    """NumPy's BLAS, as a rule one library; looking for it takes a millisecond."""
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


class _Caller:
    """Who needs the limit, for as long as it lives: Ctrl-C may come before it can say goodbye."""


_callers: weakref.WeakSet[_Caller] = weakref.WeakSet()
_threads_before: list[int] = []  # of each library, while the limit is set
_limit_lock = threading.Lock()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """The limit is the whole process's: the first caller in sets it, the last one out takes it
    back, in whatever thread."""
    caller = _Caller()
    with _limit_lock:
        if not _threads_before:
            _threads_before[:] = [library.num_threads for library in _blas()]
        _callers.add(caller)
        _set_blas_threads([1] * len(_threads_before))
    try:
        yield
    finally:
        with _limit_lock:
            _callers.discard(caller)
            if not _callers:
                _set_blas_threads(_threads_before)
                _threads_before.clear()


def _set_blas_threads(counts: Sequence[int]) -> None:
    for library, count in zip(_blas(), counts, strict=True):
        # From 3.8 on threadpoolctl heeds one thread alone, until that has taken back what it set.
        heed_any = getattr(library, "clear_controlling_thread", lambda force: None)
        heed_any(force=True)
        library.set_num_threads(count)
        heed_any(force=True)
