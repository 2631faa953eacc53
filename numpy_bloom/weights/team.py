"""Our own threads: NumPy lets go of the interpreter's lock while it computes.

BLAS is held to one thread while the team works (see `store`), and the team deals tiles to all
cores itself: widening a tile and multiplying it then happen in the cache of one core.
"""

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

Item = TypeVar("Item")


class _Job(Generic[Item]):
    """Items that several threads take one by one, until they are gone or a thread fails."""

    def __init__(self, work: Callable[[Item], None], items: Iterator[Item]) -> None:
        self._work = work
        self._items = items
        self._lock = threading.Lock()  # an iterator may be a generator, which takes one caller
        self.error: BaseException | None = None
        self.begun: list[None] = []
        self.ended: SimpleQueue[None] = SimpleQueue()

    def take_part(self) -> None:
        self.begun.append(None)
        try:
            while True:
                with self._lock:
                    if self.error is not None:
                        return
                    try:
                        item = next(self._items)
                    except StopIteration:
                        return
                self._work(item)
        except BaseException as error:  # handed to the caller of `run`
            self.error = error
        finally:
            self.ended.put(None)


class Team:
    """The calling thread and `threads - 1` helpers, which wait between jobs.

    Args:
        threads: how many work at once, at least 1.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._jobs: list[SimpleQueue[_Job[object] | None]] = []

    def run(self, work: Callable[[Item], None], items: Iterator[Item]) -> None:
        """Call `work` once for each item, from several threads, in no fixed order.

        Raises:
            BaseException: the first that `work` or `items` raised; no item is begun after it, and
                none is still worked on when it reaches the caller.
        """
        while len(self._jobs) < self.threads - 1:
            self._hire()
        job = _Job(work, items)
        for queue in self._jobs:
            queue.put(job)  # type: ignore[arg-type]
        job.take_part()
        # A helper that wakes up only now finds no item left; those that began are waited for.
        for _ in range(len(job.begun)):
            job.ended.get()
        if job.error is not None:
            raise job.error

    def _hire(self) -> None:
        queue: SimpleQueue[_Job[object] | None] = SimpleQueue()
        thread = threading.Thread(
            target=_serve, args=(queue,), name="numpy-bloom-team", daemon=True
        )
        thread.start()
        self._jobs.append(queue)

    def close(self) -> None:
        """Send the helpers home."""
        for queue in self._jobs:
            queue.put(None)
        self._jobs.clear()


def _serve(queue: "SimpleQueue[_Job[object] | None]") -> None:
    while (job := queue.get()) is not None:
        job.take_part()
        del job  # holds the arrays of the pass
