"""The actors that hold a model's parts, in the order of a pass, and tasks that run on them."""

import logging
import time
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, Future

from numpy_bloom.cluster.plan import Part, Sizes, deal, expected_seconds, plan_text, redeal
from numpy_bloom.cluster.share import Share, Travelling, call
from numpy_bloom.cluster.survey import survey
from numpy_bloom.cluster.workers import LOOK_SECONDS, MOST_SECONDS, LostError, Workers, is_there
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.model.forward import TokenIds
from numpy_bloom.running.model import Leg
from numpy_bloom.weights.folder import check_listing

logger = logging.getLogger(__name__)


class Chain:
    """The parts of a model on the workers of a cluster. The log tells of plans and of losses.

    Args:
        client: of the cluster.
        folder: of the converted model, under the same path on all workers.
        config: the model's sizes.
        manifest: of the folder.
        memory, threads: most that each worker may use. Default: what Dask gives it.

    Raises:
        NumpyBloomError: the manifest does not list the model's files.

    Attributes:
        folder: as given.
        workers: of the cluster.
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
    ) -> None:
        check_listing(folder, manifest["files"], config.num_hidden_layers)
        files = {name: entry["size"] for name, entry in manifest["files"].items()}
        self.workers = Workers(client, partial(survey, folder, config, files, memory, threads))
        self.parts: list[Part] = []
        self.names: list[str] = []
        self.expected_seconds = 0.0
        self.folder = folder
        self._config = config
        self._sizes = Sizes.of(manifest, config.num_hidden_layers)
        self._actors: list[Future[Any]] = []

    # --- which worker holds what ------------------------------------------------------------------

    def begin(self) -> None:
        """Ask all workers what they have, deal the blocks, tell of it, and have them opened.

        Raises:
            NumpyBloomError: there is no worker, or what they have does not make up the model.
        """
        while True:
            self.end()  # gives back what they hold, before others need it
            try:
                self.workers.look()
                self.parts = deal(list(self.workers.offers.values()), self._sizes, self.folder)
                empty = self._empty_pass()
                self.expected_seconds = expected_seconds(self.parts, empty)
                logger.info("%s", plan_text(self.parts, empty))
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
            NumpyBloomError: no worker is left that could hold one, and none comes back.
        """
        lost, dealt = self._dealt_anew()
        for place, part in enumerate(dealt):
            if place not in lost and part.memory != self.parts[place].memory:
                turned = self.submit(place, "turn", part.memory)
                self.workers.results([turned], {part.worker.address}, [self._actors[place]])
                self.parts[place] = part
        for place in lost:
            part = dealt[place]
            logger.warning(
                "worker %s is lost; %s: now on %s, and what it knew is computed again",
                self.parts[place].worker.address,
                part,
                part.worker.address,
            )
            self.parts[place], self.names[place] = part, _new_name()
            self._actors[place] = self._start(place)
        self.results([self._actors[place] for place in lost])

    def _dealt_anew(self) -> tuple[list[int], list[Part]]:
        """Places of parts that are lost, and all parts as others have them."""
        end, told = time.monotonic() + MOST_SECONDS, False
        while True:
            self.workers.look()
            lost = self._lost()
            try:
                offers = list(self.workers.offers.values())
                return lost, redeal(self.parts, lost, offers, self._sizes)
            except NumpyBloomError as error:  # a nanny may be starting one again that has the files
                if time.monotonic() > end:
                    raise
                if not told:
                    logger.warning("%s; waiting %g s for that", error, MOST_SECONDS)
                    told = True
            time.sleep(LOOK_SECONDS)

    def end(self) -> None:
        """Give back what the workers hold."""
        self.parts, self.names, self._actors = [], [], []

    def is_out_of_date(self) -> bool:
        """Whether nothing is dealt, or a worker is there that was not asked yet."""
        return not self.parts or self.workers.has_joined()

    def _start(self, place: int) -> Future[Any]:
        part, name = self.parts[place], self.names[place]
        options = {
            "memory": part.memory,
            "threads": part.worker.threads,
            "blocks": part.blocks,
            "embeds": part.embeds,
            "unembeds": part.unembeds,
        }
        address = part.worker.address
        return self.workers.start(address, name, Share, name, self.folder, self._config, options)

    def _lost(self) -> list[int]:
        """Places of parts that nobody holds any more, as was seen when workers were asked."""
        held = zip(self.parts, self._actors, strict=True)
        return [
            place
            for place, (part, actor) in enumerate(held)
            if part.worker.address not in self.workers.offers or not is_there(actor)
        ]

    def _empty_pass(self) -> float:
        """Seconds of a pass of one token in which nothing is computed."""
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            x: Any = Travelling(np.zeros((1, self._config.hidden_size), dtype=np.float32))
            for part in self.parts:
                width = self._config.vocab_size if part.unembeds else self._config.hidden_size
                x = self.workers.submit(part.worker.address, "empty", empty_leg, x, width)
            self.workers.results([x], {part.worker.address for part in self.parts})
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    # --- tasks ------------------------------------------------------------------------------------

    def send(
        self, ids: TokenIds, leg: Leg, numbers: Sequence[int], known: Sequence[int]
    ) -> Future[Any]:
        """Send tokens through all shares, one after the other.

        Args:
            ids: of all sequences that go together.
            leg: what the whole pass has to do.
            numbers, known: see `Share.run`.

        Returns:
            What the last share will give.
        """
        travelling: Any = Travelling(ids)
        for place, part in enumerate(self.parts):
            own = leg if part.unembeds else Leg(leg.lengths)
            own = own._replace(embeds=part.embeds)
            what = f"{part}, {len(ids)} token{'s' if len(ids) > 1 else ''}"
            travelling = self.submit(place, "run", travelling, own, numbers, known, what=what)
        return travelling

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
        part, name = self.parts[place], self.names[place]
        what = what or f"{method} {part}"
        return self.workers.submit(part.worker.address, what, call, name, method, *arguments)

    def results(self, futures: Sequence[Future[Any]]) -> list[Any]:
        """Wait for tasks of shares.

        Raises:
            LostError: a worker is lost.
            NumpyBloomError: a share raised it.
        """
        needed = {part.worker.address for part in self.parts}
        return self.workers.results(futures, needed, self._actors)


def _new_name() -> str:
    return f"share-{uuid.uuid4().hex}"


def empty_leg(travelling: Travelling, width: int) -> Travelling:
    """What a leg of one token would hand on."""
    return Travelling(np.zeros((1, width), dtype=np.float32), travelling.bytes_read)
