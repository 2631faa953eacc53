"""The runs that are not over: what the client knows of them, and what it has to tell the shares."""

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from numpy_bloom.cluster.caches import RemoteCache
from numpy_bloom.cluster.chain import Chain
from numpy_bloom.running.memory import Needs


@dataclass
class Run:
    """A run that is not over, as shares that are opened anew have to prepare for it.

    Attributes:
        needs: what they have to have room for.
        numbers: of its caches.
        held: numbers of the caches that somebody holds.
    """

    needs: Needs
    numbers: list[int]
    held: set[int]


class Runs:
    """Keeps account of runs, and of caches that nobody holds any more.

    Args:
        chain: of the shares that prepare for them.

    Attributes:
        going_on: runs of whose caches somebody holds one.
        unwanted: caches of which the workers have to be told that nobody holds them.
    """

    def __init__(self, chain: Chain) -> None:
        self.going_on: list[Run] = []
        self.unwanted: list[int] = []
        self._chain = chain
        self._known: set[str] = set()  # names of the shares that have prepared for all runs
        self._weights: dict[str, tuple[int, int]] = {}  # what each share told, by name
        self._count = itertools.count()
        self._over: list[int] = []  # the garbage collector may add to it at any time

    # --- what the client knows --------------------------------------------------------------------

    def numbers(self, count: int) -> list[int]:
        """New numbers for so many caches."""
        return [next(self._count) for _ in range(count)]

    def add(self, run: Run, caches: Sequence[RemoteCache]) -> None:
        """A run has begun. It is over when nobody holds any of its caches."""
        self.going_on.append(run)
        for cache in caches:
            weakref.finalize(cache, self._over.append, cache.number).atexit = False

    def forget(self) -> None:
        """Forget the runs that are over."""
        while self._over:
            number = self._over.pop()
            self.unwanted.append(number)
            for run in self.going_on:
                run.held.discard(number)
        self.going_on = [run for run in self.going_on if run.held]

    def weights(self) -> list[tuple[int, int]]:
        """What `Share.weights` told; before the first run, nothing pinned, and bytes of files."""
        parts = zip(self._chain.names, self._chain.parts, strict=True)
        return [self._weights.get(name, (0, part.nbytes)) for name, part in parts]

    # --- what the shares are told -----------------------------------------------------------------

    def prepare(self, run: Run) -> None:
        """Have all shares prepare for a run that is about to begin."""
        self.drop()
        self._keep_weights(self._chain.everywhere("prepare", run.numbers, run.needs))

    def drop(self) -> None:
        """Have shares forget the caches that nobody holds any more."""
        self.forget()
        if self.unwanted:
            self._chain.everywhere("drop", self.unwanted)
            self.unwanted = []

    def tell_new_shares(self) -> None:
        """Have shares that were opened anew prepare for the runs that are not over."""
        chain = self._chain
        new = [place for place, name in enumerate(chain.names) if name not in self._known]
        for run in self.going_on if new else []:
            given_up = [number for number in run.numbers if number not in run.held]
            chain.results([chain.submit(i, "prepare", run.numbers, run.needs) for i in new])
            chain.results([chain.submit(i, "drop", given_up) for i in new])
        if new and self.going_on:  # others may have less memory now, and have told of more weights
            self._keep_weights(chain.everywhere("weights"))
        self._known = set(chain.names)

    def _keep_weights(self, told: Sequence[tuple[int, int]]) -> None:
        self._weights = dict(zip(self._chain.names, told, strict=True))
