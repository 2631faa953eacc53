"""The workers of a cluster: who is there, what each has to offer, what becomes of its tasks."""

import asyncio
import logging
import pkgutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from functools import partial
from itertools import zip_longest
from typing import Any
from urllib.parse import urlsplit

from distributed import Client, Future

from numpy_bloom import __version__
from numpy_bloom.cluster.plan import Worker
from numpy_bloom.errors import NumpyBloomError

LOOK_SECONDS = 0.5
"""Between two looks at whether the workers that are waited for are still there."""

MOST_SECONDS = 10
"""That Dask is given to find a worker lost, or to start one again where there is none."""

SILENT_SECONDS = 20
"""After which a scheduler that does not answer is given up."""

logger = logging.getLogger(__name__)


class LostError(Exception):
    """A worker that holds a part is there no more, or does not hold it any more."""


class Workers:
    """The workers of a cluster, and tasks that run on them.

    Args:
        client: of the cluster.
        survey: what a worker does to find out what it has to offer.

    Attributes:
        client: as given.
        offers: of all that are there and can run the model, by address, as was seen last.
    """

    def __init__(self, client: Client, survey: partial[Worker]) -> None:
        self.client = client
        self._survey = survey
        self._left_out: dict[str, Exception] = {}
        self.offers: dict[str, Worker] = {}

    def look(self) -> None:
        """Ask the workers that were not asked yet, and forget those that are there no more.

        One that cannot run the model is left out.

        Raises:
            NumpyBloomError: there is no worker, or none that can run the model.
        """
        had, end = bool(self.offers), time.monotonic() + MOST_SECONDS
        self._ask()
        while not self.offers:
            # Where there was one, a nanny may be starting it again.
            if (self._left_out and not had) or time.monotonic() > end:
                raise NumpyBloomError(self._why_none())
            time.sleep(LOOK_SECONDS)
            self._ask()

    def _why_none(self) -> str:
        if not self._left_out:
            return "the cluster has no worker; start one: dask worker SCHEDULER"
        address, error = next(iter(self._left_out.items()))
        return f"no worker of the cluster is of use; {_reason(address, error)}"

    def _ask(self) -> None:
        addresses = self._addresses()
        self.offers = {name: offer for name, offer in self.offers.items() if name in addresses}
        self._left_out = {name: why for name, why in self._left_out.items() if name in addresses}
        new = addresses - self.offers.keys() - self._left_out.keys()
        # Dask would end a worker that cannot import what it is sent.
        versions = self._answers(new, "version", pkgutil.resolve_name, "numpy_bloom:__version__")
        for address, version in versions.items():
            if version != __version__:
                told = f"it has numpy-bloom {version}, expected {__version__}; install that there"
                self._leave_out(address, NumpyBloomError(told))
        for together in _one_of_each_machine(versions.keys() - self._left_out.keys()):
            self.offers |= self._answers(together, "survey", self._survey)

    def _answers(
        self, addresses: Iterable[str], name: str, function: Callable[..., Any], *arguments: Any
    ) -> dict[str, Any]:
        """What workers give for a function. Those where it raises something are left out."""
        asked = {one: self.submit(one, name, function, *arguments) for one in addresses}
        answers = {}
        for address, answer in asked.items():
            try:
                (answers[address],) = self.results([answer], {address})
            except LostError:  # it was there a moment ago
                pass
            except Exception as error:
                if answer.status != "error":  # it is not the worker's
                    raise
                self._leave_out(address, error)
        return answers

    def _leave_out(self, address: str, error: Exception) -> None:
        self._left_out[address] = error
        logger.warning("%s; it is left out", _reason(address, error))

    def has_joined(self) -> bool:
        """Whether a worker is there that was not asked yet."""
        return not self._addresses() <= self.offers.keys() | self._left_out.keys()

    def _addresses(self) -> set[str]:
        """Of all workers that are there.

        Raises:
            NumpyBloomError: the scheduler is gone, or hangs.
        """
        fault = "is gone"
        try:
            if self.client.status == "running":
                return set(self.client.nthreads(callback_timeout=SILENT_SECONDS))
        except asyncio.TimeoutError:
            fault = f"has not answered for {SILENT_SECONDS} s"
        except (OSError, RuntimeError):  # it goes at this moment
            pass
        scheduler: Any = self.client.scheduler
        raise NumpyBloomError(f"the scheduler at {scheduler.address} {fault}; start it again")

    def submit(
        self, address: str, name: str, function: Callable[..., Any], *arguments: Any
    ) -> Future[Any]:
        """Have a worker call a function.

        Args:
            address: of the worker.
            name: the task's on the dashboard.
            function, arguments: what to call; futures among the arguments become their results.
        """
        key = f"{name}-{uuid.uuid4().hex}"
        return self.client.submit(function, *arguments, workers=[address], key=key)

    def start(
        self, address: str, name: str, actor: Callable[..., Any], *arguments: Any
    ) -> Future[Any]:
        """Have a worker make an actor, and hold it as long as somebody holds the future."""
        return self.client.submit(actor, *arguments, workers=[address], key=name, actor=True)

    def results(
        self, futures: Sequence[Future[Any]], needed: set[str], actors: Sequence[Future[Any]] = ()
    ) -> list[Any]:
        """Wait for tasks.

        Args:
            futures: of the tasks.
            needed: addresses of the workers without which they cannot be done.
            actors: which they need there.

        Raises:
            LostError: what they need is lost.
            NumpyBloomError: the scheduler is gone, or Dask fails.
            Exception: what a task raised.
        """

        def are_lost() -> bool:
            return not needed <= self._addresses() or not all(map(is_there, actors))

        # With a result that is lost on its way, after its task is done, `gather` alone would wait
        # for ever: its task is tied to a worker that is not there.
        loop: Any = self.client.loop
        gathering = asyncio.run_coroutine_threadsafe(
            self.client.gather(list(futures), asynchronous=True), loop.asyncio_loop
        )
        try:
            while not wait([gathering], timeout=LOOK_SECONDS).done:
                if are_lost():
                    raise LostError
            results: list[Any] = gathering.result()
            return results
        except NumpyBloomError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            if not _is_of_dask(error, futures):
                raise
            end = time.monotonic() + MOST_SECONDS
            while not are_lost():  # the scheduler may say so a little later
                if time.monotonic() > end:
                    raise NumpyBloomError(
                        f"the cluster failed: {type(error).__name__}: {error}"
                    ) from error
                time.sleep(LOOK_SECONDS / 10)
            raise LostError from error
        finally:
            if not gathering.done() and self.client.status == "running":
                self.client.cancel(list(futures))  # of what is lost, or interrupted


def is_there(actor: Future[Any]) -> bool:
    """Whether somebody holds an actor, or is about to."""
    return actor.status in ("finished", "pending")


def _is_of_dask(error: BaseException, futures: Sequence[Future[Any]]) -> bool:
    """Whether an error is about tasks that could not be done, and does not come of their work."""
    raised = any(future.status == "error" for future in futures)
    room = type(error).__module__.partition(".")[0]
    return not raised or isinstance(error, LostError) or room == "distributed"


def _one_of_each_machine(addresses: Iterable[str]) -> Iterator[list[str]]:
    """Groups of workers that do not get in each other's way when they measure what they can do."""
    machines: dict[str | None, list[str]] = {}
    for address in sorted(addresses):
        machines.setdefault(urlsplit(address).hostname, []).append(address)
    for group in zip_longest(*machines.values()):
        yield [address for address in group if address is not None]


def _reason(address: str, error: Exception) -> str:
    """Why a worker cannot run the model."""
    text = str(error) if isinstance(error, NumpyBloomError) else f"{type(error).__name__}: {error}"
    remedy = "; install numpy-bloom there" if isinstance(error, ImportError) else ""
    return f"worker {address} cannot run it: {text}{remedy}"
