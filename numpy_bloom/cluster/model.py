"""A model whose blocks are on the workers of a cluster, with the methods of `Model`."""

import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from distributed import Future

from numpy_bloom.cluster.caches import RemoteCache
from numpy_bloom.cluster.chain import Chain
from numpy_bloom.cluster.runs import Run, Runs
from numpy_bloom.cluster.share import Travelling
from numpy_bloom.cluster.workers import LostError
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.model.forward import TokenIds
from numpy_bloom.model.passes import Tap, no_tap
from numpy_bloom.running.memory import Needs
from numpy_bloom.running.model import Leg, last_rows
from numpy_bloom.running.room import OnWeights
from numpy_bloom.weights.dtypes import Floats

Result = TypeVar("Result")

MOST_LOSSES = 5
"""Of workers, one after the other, before something is done: then it is the work that ends them."""

HELD_BYTES = 1 << 24
"""Results of a pass that are no larger are given up when the next pass is on its way. The client
sends a message every 10 ms at most, and tasks would wait for the one that gives them up."""


class ClusterModel:
    """Blocks on workers. The client holds none; it knows which tokens are in which cache.

    A pass is a chain of tasks, one for each range of blocks; hidden states go from worker to
    worker. Several sequences go in several chains, so that all workers have something to do. When a
    worker is lost, its blocks go to others, and what it knew of a sequence is computed again from
    the tokens.

    Args:
        config: the sizes.
        chain: the workers, with blocks.
        close: gives back all there is.

    Attributes:
        folder: the converted model.
        config: as given.
        bytes_read: of weights, read from disk by all passes so far.
    """

    resident_bytes = 0
    """Nothing in this process."""

    def __init__(self, config: BloomConfig, chain: Chain, close: Callable[[], None]) -> None:
        self.config = config
        self.folder = chain.folder
        self.bytes_read = 0
        self._chain = chain
        self._runs = Runs(chain)
        self._repairs = 0
        self._sent: list[Future[Any]] = []  # results of the last pass, see HELD_BYTES
        self._on_weights: OnWeights = lambda _name, _nbytes: None
        self._one_at_a_time = threading.RLock()
        self.close = weakref.finalize(self, close)

    @property
    def bytes_pinned(self) -> int:
        """Of weights that are in the workers' memory."""
        return sum(pinned for pinned, _ in self._runs.weights())

    @property
    def weight_bytes(self) -> int:
        """Of weights that a pass uses; before the first run, of their files."""
        return sum(nbytes for _, nbytes in self._runs.weights())

    @property
    def memory(self) -> int:
        """Bytes that weights and runs may take on the worker that has least."""
        return min((part.memory for part in self._chain.parts), default=0)

    def forecast(self) -> str:
        """Nothing: the plan has told it."""
        return ""

    def watch(self, on_weights: OnWeights) -> None:
        """Tell an onlooker when sequences have gone through all blocks."""
        self._on_weights = on_weights

    # --- runs -------------------------------------------------------------------------------------

    def prepare(self, needs: Needs) -> list[RemoteCache]:
        """See `Room`; on all workers. Those that joined are used if no run is under way."""
        needs = replace(needs, draft=None)  # which is of this process's memory
        numbers = self._runs.numbers(len(needs.cache_tokens))
        run = Run(needs, numbers, set(numbers))
        with self._one_at_a_time:
            self._runs.forget()
            if not self._runs.going_on and self._chain.is_out_of_date():
                self._chain.begin()
            try:
                self._surviving(lambda: self._runs.prepare(run))
            except BaseException:
                self._runs.unwanted += numbers  # some workers may have them
                raise
            heads, size = self.config.num_attention_heads, self.config.head_size
            shape = self.config.num_hidden_layers, 2, heads, size
            caches = [
                RemoteCache(self, number, capacity, needs.pass_tokens, shape, self._repairs)
                for number, capacity in zip(numbers, needs.cache_tokens, strict=True)
            ]
            self._runs.add(run, caches)
        return caches

    def has_room(self, needs: Needs, *, resident: bool = False) -> bool:
        """See `Room`; on all workers."""
        return self._all("has_room", replace(needs, draft=None), resident)

    def has_room_for_pass(
        self, tokens: int, longest: int, *, target_rows: int, resident: bool
    ) -> bool:
        """See `Room`; on all workers."""
        return self._all("has_room_for_pass", tokens, longest, target_rows, resident)

    def _all(self, method: str, *arguments: Any) -> bool:
        def ask() -> bool:
            self._runs.drop()
            return all(self._chain.everywhere(method, *arguments))

        with self._one_at_a_time:
            return self._surviving(ask)

    # --- passes -----------------------------------------------------------------------------------

    def run(
        self,
        sequences: Sequence[TokenIds],
        caches: Sequence[RemoteCache],
        *,
        last: Sequence[int] | None = None,
        tap: Tap = no_tap,
    ) -> Floats:
        """See `Model`."""
        if tap is not no_tap:
            raise NumpyBloomError("stages of a pass over a cluster cannot be traced or edited")
        last = [1] * len(sequences) if last is None else last
        return self._pass(sequences, caches, last, None)

    def score(
        self,
        sequences: Sequence[TokenIds],
        caches: Sequence[RemoteCache],
        targets: Sequence[TokenIds],
    ) -> Floats:
        """See `Model`."""
        return self._pass(sequences, caches, [len(ids) for ids in targets], targets)

    def _pass(
        self,
        sequences: Sequence[TokenIds],
        caches: Sequence[RemoteCache],
        last: Sequence[int],
        targets: Sequence[TokenIds] | None,
    ) -> Floats:
        """One pass, whatever it takes."""

        def go_through() -> list[Travelling]:
            self._restore(caches)
            chains = []
            for group in self._groups(len(sequences)):
                ids = [sequences[i] for i in group]
                rows = last_rows([len(one) for one in ids], [last[i] for i in group])
                wanted = None if targets is None else np.concatenate([targets[i] for i in group])
                leg = Leg(
                    [len(one) for one in ids], rows=rows, unembeds=targets is None, targets=wanted
                )
                chains.append(self._send(np.concatenate(ids), leg, [caches[i] for i in group]))
            self._sent = []
            arrived = self._arrived(chains)
            if sum(one.x.nbytes for one in arrived) <= HELD_BYTES:
                self._sent = chains
            return arrived

        with self._one_at_a_time:
            for ids, cache in zip(sequences, caches, strict=True):
                cache.check_room(len(ids))
            arrived = self._surviving(go_through)
            self._on_weights("all blocks", self.weight_bytes)
            for ids, cache in zip(sequences, caches, strict=True):
                if cache.capacity:
                    cache.extend(ids.tolist())
        return np.concatenate([one.x for one in arrived])

    def _groups(self, count: int) -> list[npt.NDArray[np.int64]]:
        """Sequences that go together: as many groups as keep all workers at work, but only one if
        weights are read from disk, which each group would do again."""
        resident = self.bytes_pinned == self.weight_bytes
        groups = min(count, len(self._chain.parts)) if resident else 1
        return np.array_split(np.arange(count), groups)

    def _send(self, ids: TokenIds, leg: Leg, caches: Sequence[RemoteCache]) -> Future[Any]:
        numbers, known = [cache.number for cache in caches], [cache.length for cache in caches]
        return self._chain.send(ids, leg, numbers, known)

    def _arrived(self, chains: Sequence[Future[Any]]) -> list[Travelling]:
        arrived: list[Travelling] = self._chain.results(chains)
        self.bytes_read += sum(one.bytes_read for one in arrived)
        return arrived

    # --- keys and values --------------------------------------------------------------------------

    def token(self, cache: RemoteCache, place: int) -> Floats:
        """Keys and values of one token in every block, (L, 2, N, D)."""

        def fetch() -> Floats:
            self._restore([cache])
            return np.concatenate(self._chain.everywhere("token", cache.number, place))

        with self._one_at_a_time:
            return self._surviving(fetch)

    def put(self, cache: RemoteCache, place: int, keys_values: Floats) -> None:
        """Put them back."""

        def send() -> None:
            chain = self._chain
            own = [keys_values[part.blocks.start : part.blocks.stop] for part in chain.parts]
            chain.results(
                [chain.submit(i, "put", cache.number, place, one) for i, one in enumerate(own)]
            )

        with self._one_at_a_time:
            self._surviving(send)

    def copy_prefix(self, to: RemoteCache, of: RemoteCache, tokens: int, known: int) -> None:
        """Copy what the first tokens of one have, but for the first known ones, to another."""

        def copy() -> None:
            self._restore([to, of])
            self._chain.everywhere("copy_prefix", to.number, of.number, tokens, known)

        with self._one_at_a_time:
            self._surviving(copy)

    # --- faults -----------------------------------------------------------------------------------

    def _surviving(self, work: Callable[[], Result]) -> Result:
        """Do something, again if a worker was lost meanwhile."""
        for _ in range(MOST_LOSSES):
            try:
                self._runs.tell_new_shares()
                return work()
            except LostError:
                self._repairs += 1
                with suppress(LostError):  # another one: it will be seen when it is asked
                    self._chain.repair()
        raise NumpyBloomError(
            f"workers were lost {MOST_LOSSES} times in a row; their logs may tell why, or whether "
            "they have too little memory"
        )

    def _restore(self, caches: Sequence[RemoteCache]) -> None:
        """Compute again what a lost worker knew of some sequences, in passes that are no larger
        than those that there is room for."""
        for cache in caches:
            if cache.intact == self._repairs:
                continue
            if cache.capacity:
                self._compute_again(cache)
            cache.intact = self._repairs

    def _compute_again(self, cache: RemoteCache) -> None:
        ids, length = np.array(cache.ids(), dtype=np.int64), cache.length
        nothing = np.empty(0, dtype=np.int64)
        try:
            for begin in range(0, length, cache.pass_tokens):
                cache.length = begin
                part = ids[begin : begin + cache.pass_tokens]
                leg = Leg([len(part)], rows=nothing)
                self._arrived([self._send(part, leg, [cache])])
        finally:
            cache.length = length
