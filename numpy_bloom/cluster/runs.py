"""The runs that are not over, as the client knows them."""

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy_bloom.cluster.caches import RemoteCache


@dataclass
class Run:
    """A run that is not over, as shares that are opened anew have to prepare for it.

    Attributes:
        method: by which.
        numbers: of its caches.
        arguments: of it.
        held: numbers of the caches that somebody holds.
    """

    method: str
    numbers: list[int]
    arguments: tuple[Any, ...]
    held: set[int]


class Runs:
    """Keeps account of runs, and of caches that nobody holds any more.

    Attributes:
        going_on: runs of whose caches somebody holds one.
        unwanted: caches of which the workers have to be told that nobody holds them.
    """

    def __init__(self) -> None:
        self.going_on: list[Run] = []
        self.unwanted: list[int] = []
        self._count = itertools.count()
        self._over: list[int] = []  # the garbage collector may add to it at any time

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
