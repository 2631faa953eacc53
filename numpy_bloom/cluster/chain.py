"""The actors that hold a model's parts, in the order of a pass, and tasks that run on them."""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from distributed import Client, Future

from numpy_bloom.cluster.plan import Part, Sizes, Worker, deal, expected_seconds, redeal, told
from numpy_bloom.cluster.share import Share, Travelling, call
from numpy_bloom.cluster.survey import survey
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.config import BloomConfig

LOOK_SECONDS = 0.5
"""Between two looks at whether the workers that are waited for are still there."""

MOST_SECONDS = 10
"""That a cluster without workers, of which a nanny may be starting one again, is given."""

Tell = Callable[[str], None]
"""Where lines for people go."""


class LostError(Exception):
    """A worker that holds a part is there no more."""


class Chain:
    """The parts of a model on the workers of a cluster.

    Args:
        client: of the cluster.
        folder: of the converted model, under the same path on all workers.
        config: the model's sizes.
        manifest: of the folder.
        memory, threads: most that each worker may use. Default: what Dask gives it.
        tell: hears of the plan, and of workers that are lost.

    Attributes:
        parts: in the order of a pass.
        names: by which tasks find the shares that hold them.
        expected_seconds: of a pass of one token, as the plan has it.
    """

    def __init__(
        self,
        client: Client,
        folder: Path,
        config: BloomConfig,
        manifest: Any,
        *,
        memory: int | None,
        threads: int | None,
        tell: Tell,
    ) -> None:
        self._client = client
        self._folder = folder
        self._config = config
        self._files = {name: entry["size"] for name, entry in manifest["files"].items()}
        self._sizes = Sizes.of(manifest, config.num_hidden_layers)
        self._limits = memory, threads
        self._tell = tell
        self._workers: dict[str, Worker] = {}
        self._actors: list[Future[Any]] = []
        self.parts: list[Part] = []
        self.names: list[str] = []
        self.expected_seconds = 0.0

    # --- which worker holds what ------------------------------------------------------------------

    def begin(self) -> None:
        """Ask all workers what they have, deal the blocks, tell of it, and have them opened.

        Raises:
            NumpyBloomError: there are no workers, or what they have does not make up the model.
        """
        while True:
            self._actors = []  # gives back what they hold, before others need it
            try:
                self._survey()
                self.parts = deal(list(self._workers.values()), self._sizes, self._folder)
                empty = self._empty_pass()
                self.expected_seconds = expected_seconds(self.parts, empty)
                self._tell(told(self.parts, empty))
                self.names = [_new_name() for _ in self.parts]
                self._actors = [self._start(place) for place in range(len(self.parts))]
                self.results(self._actors)
            except LostError:
                continue
            return

    def repair(self) -> None:
        """Give parts whose workers are lost to others, under new names.

        Raises:
            LostError: one more worker is lost.
            NumpyBloomError: no worker is left that could hold one.
        """
        self._survey()
        lost = self._lost()
        dealt = redeal(self.parts, lost, list(self._workers.values()), self._sizes)
        for place, part in enumerate(dealt):
            if place not in lost and part.memory != self.parts[place].memory:
                turned = self.submit(place, "turn", part.memory)
                self._wait([turned], {part.worker.address}, [self._actors[place]])
                self.parts[place] = part
        for place in lost:
            part = dealt[place]
            self._tell(
                f"worker {self.parts[place].worker.address} is lost; {part} goes to "
                f"{part.worker.address}, and what it knew is computed again"
            )
            self.parts[place], self.names[place] = part, _new_name()
            self._actors[place] = self._start(place)
        self.results([self._actors[place] for place in lost])

    def end(self) -> None:
        """Give back what the workers hold."""
        self._actors = []

    def has_joined(self) -> bool:
        """Whether a worker is there that was not asked yet."""
        return not self._addresses() <= self._workers.keys()

    def _survey(self) -> None:
        """Ask workers that were not asked yet, and forget those that are not there any more."""
        addresses = self._addresses()
        end = time.monotonic() + MOST_SECONDS
        while not addresses and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
            addresses = self._addresses()
        if not addresses:
            raise NumpyBloomError("the cluster has no worker; start one: dask worker SCHEDULER")
        self._workers = {name: one for name, one in self._workers.items() if name in addresses}
        for together in _one_of_each_machine(addresses - self._workers.keys()):
            asked = {address: self._ask(address) for address in together}
            for address, future in asked.items():
                with suppress(LostError):  # it was there a moment ago
                    (self._workers[address],) = self._wait([future], {address})

    def _ask(self, address: str) -> Future[Any]:
        """What a worker has to offer."""
        return self._client.submit(
            survey,
            self._folder,
            self._config,
            self._files,
            *self._limits,
            workers=[address],
            key=f"survey-{uuid.uuid4().hex}",
            pure=False,
        )

    def _addresses(self) -> set[str]:
        """Of all workers that are there.

        Raises:
            NumpyBloomError: the scheduler is gone.
        """
        if self._client.status != "running":
            raise NumpyBloomError("the scheduler of the cluster is gone; start it again")
        return set(self._client.nthreads())

    def _start(self, place: int) -> Future[Any]:
        part = self.parts[place]
        options = {
            "memory": part.memory,
            "threads": part.worker.threads,
            "blocks": part.blocks,
            "embeds": part.embeds,
            "unembeds": part.unembeds,
        }
        name = self.names[place]
        return self._client.submit(
            Share,
            name,
            self._folder,
            self._config,
            options,
            actor=True,
            workers=[part.worker.address],
            key=name,
        )

    def _empty_pass(self) -> float:
        """Seconds of a pass of one token in which nothing is computed."""
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            x: Any = Travelling(np.zeros((1, self._config.hidden_size), dtype=np.float32))
            for number, part in enumerate(self.parts):
                wide = number == len(self.parts) - 1
                x = self._client.submit(
                    empty_leg,
                    x,
                    self._config.vocab_size if wide else self._config.hidden_size,
                    workers=[part.worker.address],
                    key=f"empty-{uuid.uuid4().hex}",
                    pure=False,
                )
            self._wait([x], {part.worker.address for part in self.parts})
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    # --- tasks ------------------------------------------------------------------------------------

    def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of each share. Their results, in the order of a pass.

        Raises:
            LostError: a worker is lost.
            NumpyBloomError: what the method raises.
        """
        places = range(len(self.parts))
        return self.results([self.submit(place, method, *arguments) for place in places])

    def submit(self, place: int, method: str, *arguments: Any, what: str = "") -> Future[Any]:
        """Have a method of one share called.

        Args:
            place: of the part.
            method, arguments: what to call; futures among the arguments become their results.
            what: the task's name on the dashboard. Default: method and part.
        """
        return self._client.submit(
            call,
            self.names[place],
            method,
            *arguments,
            workers=[self.parts[place].worker.address],
            key=f"{what or f'{method} {self.parts[place]}'}-{uuid.uuid4().hex}",
            pure=False,
        )

    def results(self, futures: Sequence[Future[Any]]) -> list[Any]:
        """Wait for tasks of shares.

        Raises:
            LostError: a worker is lost.
            NumpyBloomError: a share raised it.
        """
        return self._wait(futures, {part.worker.address for part in self.parts}, self._actors)

    def _wait(
        self, futures: Sequence[Future[Any]], needed: set[str], actors: Sequence[Future[Any]] = ()
    ) -> list[Any]:
        """Results of tasks that need some workers, and some actors on them."""

        def are_lost() -> bool:
            return not needed <= self._addresses() or not all(map(_is_there, actors))

        # With a result that is lost on its way, after its task is done, `gather` alone would wait
        # for ever: its task is tied to a worker that is not there.
        loop: Any = self._client.loop
        gathering = asyncio.run_coroutine_threadsafe(
            self._client.gather(list(futures), asynchronous=True), loop.asyncio_loop
        )
        try:
            while not wait([gathering], timeout=LOOK_SECONDS).done:
                if are_lost():
                    raise LostError
            results: list[Any] = gathering.result()
            return results
        except (NumpyBloomError, LostError):
            raise
        except ImportError as error:
            raise NumpyBloomError(
                f"a worker of the cluster cannot run numpy-bloom: {error}; install it there"
            ) from error
        except (Exception, asyncio.CancelledError) as error:
            end = time.monotonic() + MOST_SECONDS
            while not are_lost():  # the scheduler may say so a little later
                if not _may_be_lost(error) or time.monotonic() > end:
                    raise
                time.sleep(LOOK_SECONDS / 10)
            raise LostError from error
        finally:
            if not gathering.done():  # of what is lost, or interrupted
                self._client.cancel(list(futures))

    def _lost(self) -> list[int]:
        """Places of parts that nobody holds any more, as was seen when workers were asked."""
        held = zip(self.parts, self._actors, strict=True)
        return [
            place
            for place, (part, actor) in enumerate(held)
            if part.worker.address not in self._workers or not _is_there(actor)
        ]


def _one_of_each_machine(addresses: set[str]) -> Iterator[list[str]]:
    """Groups of workers that do not get in each other's way when they measure what they can do."""
    machines: dict[str | None, list[str]] = {}
    for address in sorted(addresses):
        machines.setdefault(urlsplit(address).hostname, []).append(address)
    for group in zip_longest(*machines.values()):
        yield [address for address in group if address is not None]


def _new_name() -> str:
    return f"share-{uuid.uuid4().hex}"


def _is_there(actor: Future[Any]) -> bool:
    return actor.status in ("finished", "pending")


def empty_leg(travelling: Travelling, width: int) -> Travelling:
    """What a leg of one token would hand on."""
    return Travelling(np.zeros((1, width), dtype=np.float32), travelling.bytes_read)


def _may_be_lost(error: BaseException) -> bool:
    """Whether this may come of a worker that is not there any more, rather than of its work."""
    room = type(error).__module__.partition(".")[0]
    return room in ("distributed", "asyncio", "concurrent") or isinstance(
        error, OSError | RuntimeError | KeyError
    )
