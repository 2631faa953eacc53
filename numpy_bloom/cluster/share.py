"""A range of blocks on a worker: a Dask actor with its weights and its part of each cache."""

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
from distributed import get_worker

from numpy_bloom.cluster.workers import LostError
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.cache import Cache, KVCache
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.running.memory import Needs
from numpy_bloom.running.model import Leg, Model
from numpy_bloom.weights.dtypes import Floats

_here: "weakref.WeakValueDictionary[str, Share]" = weakref.WeakValueDictionary()
"""The shares of this process. A task that Dask runs beside an actor finds it here at once; calling
it as an actor would send its arrays through a socket, from the process to itself."""


class Travelling(NamedTuple):
    """What goes from worker to worker, and at last to the client.

    Attributes:
        x: hidden states (T, H) float32; logits or log-probabilities at the end.
        bytes_read: weights that the pass has read from disk so far.
    """

    x: npt.NDArray[Any]
    bytes_read: int = 0


class Share:
    """A range of blocks.

    The client counts the tokens in the caches: it says with each leg how many there are. What an
    interrupted pass has left behind is written over. Dask cannot stop a task that runs, so one that
    nobody waits for any more may run still; the next one waits for it.

    Args:
        name: by which tasks find it.
        folder: the converted model, or what this range needs of it.
        config: the model's sizes.
        options: those of `Model.open`.
    """

    def __init__(
        self, name: str, folder: Path, config: BloomConfig, options: Mapping[str, Any]
    ) -> None:
        self._model = Model.open(folder, config, **options)
        self._unembeds = bool(options["unembeds"])
        self._caches: dict[int, Any] = {}
        self._one_at_a_time = threading.Lock()
        _here[name] = self

    def turn(self, memory: int) -> None:
        """Have more or less memory from now on.

        Raises:
            NumpyBloomError: less than the runs that are not over need.
        """
        self._model.turn(memory)

    def prepare(self, numbers: Sequence[int], needs: Needs) -> tuple[int, int]:
        """`Model.prepare`, its caches known by numbers from now on.

        Returns:
            See `weights`.
        """
        self.drop(numbers)  # which a client may have given before a loss
        caches = self._model.prepare(self._own(needs))
        self._caches.update(zip(numbers, caches, strict=True))
        return self.weights()

    def has_room(self, needs: Needs, resident: bool) -> bool:
        """`Model.has_room`."""
        return self._model.has_room(self._own(needs), resident=resident)

    def has_room_for_pass(
        self, tokens: int, longest: int, target_rows: int, resident: bool
    ) -> bool:
        """`Model.has_room_for_pass`."""
        rows = target_rows * self._unembeds
        return self._model.has_room_for_pass(tokens, longest, target_rows=rows, resident=resident)

    def weights(self) -> tuple[int, int]:
        """Bytes of weights that are pinned, and of all weights that its passes use."""
        return self._model.bytes_pinned, self._model.weight_bytes

    def drop(self, numbers: Sequence[int]) -> None:
        """Nobody holds these caches any more."""
        for number in numbers:
            self._caches.pop(number, None)

    def run(
        self, travelling: Travelling, leg: Leg, numbers: Sequence[int], known: Sequence[int]
    ) -> Travelling:
        """One leg of a pass.

        Args:
            travelling: what comes in.
            leg: what there is to do.
            numbers: of the caches.
            known: tokens that are in each before this pass.
        """
        with self._one_at_a_time:
            caches = [self._cache(*pair) for pair in zip(numbers, known, strict=True)]
            before = self._model.bytes_read
            x = self._model.run_leg(travelling.x, leg, caches)
            return Travelling(x, travelling.bytes_read + self._model.bytes_read - before)

    def token(self, number: int, place: int) -> Floats:
        """`KVCache.token`."""
        cache: KVCache = self._caches[number]
        with self._one_at_a_time:
            return cache.token(place)

    def put(self, number: int, place: int, keys_values: Floats) -> None:
        """`KVCache.put`."""
        with self._one_at_a_time:
            self._caches[number].put(place, keys_values)

    def copy_prefix(self, number: int, other: int, tokens: int, known: int) -> None:
        """`KVCache.copy_prefix`."""
        with self._one_at_a_time:
            self._caches[number].copy_prefix(self._caches[other], tokens, known)

    def _own(self, needs: Needs) -> Needs:
        """Of rows that meet the vocabulary only the worker knows that has the head."""
        return needs if self._unembeds else replace(needs, logit_rows=0, target_rows=0)

    def _cache(self, number: int, known: int) -> Cache:
        cache: Cache = self._caches[number]
        if isinstance(cache, KVCache):
            cache.length = known
        return cache


def call(name: str, method: str, *arguments: Any) -> Any:
    """What Dask runs on a worker: a method of one of its shares.

    Raises:
        LostError: the share is not here.
        NumpyBloomError: the method raised it; the worker is named.
    """
    share = _here.get(name)
    if share is None:
        raise LostError(f"{name} is not on worker {get_worker().address}")
    try:
        return getattr(share, method)(*arguments)
    except NumpyBloomError as error:
        raise NumpyBloomError(f"worker {get_worker().address}: {error}") from error
