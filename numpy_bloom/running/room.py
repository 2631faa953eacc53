"""The memory that a model's weights and all its runs share."""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.cache import Cache, KVCache, OnePassCache
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.running.memory import Needs, Resident, logit_bytes, pass_bytes, score_bytes
from numpy_bloom.running.tree import parameter_tree
from numpy_bloom.sizes import megabytes_text, size_text
from numpy_bloom.weights.store import WeightStore

OnWeights = Callable[[str, int], None]
"""An onlooker: gets the name of some weights, and their bytes, when a pass comes to use them."""


class Room:
    """What an opened model has in memory: weights, and the caches and passes of its runs.

    Args:
        config: the sizes.
        store: where the weights lie.
        memory: bytes that everything together may take.
        blocks: numbers of those that the store holds. Default: all.

    Attributes:
        config, store, memory, blocks: as given.
        folder: the converted model.
        stream: the weights on their way through memory.
        parameters: all of them, as a tree.
        memory_for_all: what the run prepared last would need to read nothing from disk.
    """

    def __init__(
        self, config: BloomConfig, store: WeightStore, memory: int, blocks: range | None = None
    ) -> None:
        self.config = config
        self.folder = store.folder.path
        self.store = store
        self.memory = memory
        self.blocks = range(config.num_hidden_layers) if blocks is None else blocks
        self.stream = store.stream
        self.parameters = parameter_tree(store, self.blocks)
        self.memory_for_all = 0
        # The runs that are not over: the caches of each, bytes that its largest pass needs, and
        # the draft model that takes its share of the memory meanwhile.
        self._runs: weakref.WeakKeyDictionary[Cache, tuple[int, Resident | None]] = (
            weakref.WeakKeyDictionary()
        )
        self._runs_lock = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._holder = 0  # the thread that has it; an interruption may leave that here

    @property
    def weight_bytes(self) -> int:
        """Of weights that a pass uses."""
        return self.stream.nbytes

    @property
    def bytes_pinned(self) -> int:
        """Of weights that are held in memory."""
        return self.stream.bytes_pinned

    @property
    def bytes_read(self) -> int:
        """Of weights, read from disk by all passes so far."""
        return self.stream.bytes_read

    @property
    def resident_bytes(self) -> int:
        """What the runs that are not over need, with all weights and what helps to multiply by them
        in memory; without drafts."""
        return self._held_bytes(0, 0) + self.stream.nbytes + self.store.process_bytes

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep all other callers out while the `with` block runs, those of other threads too.

        Raises:
            NumpyBloomError: this thread is within it already: it would wait for itself.
        """
        if self._one_at_a_time.locked() and self._holder == threading.get_ident():
            raise NumpyBloomError(
                "an edit or onlooker of a pass uses the model that makes it; load another one"
            )
        with self._one_at_a_time:
            self._holder = threading.get_ident()
            try:
                yield
            finally:
                self._holder = 0

    def prepare(self, needs: Needs) -> list[Any]:
        """Make room for a run: pin as many weights as fit beside all else.

        Returns:
            For each sequence its empty `KVCache`, or what stands in place of one if nothing is kept
            of it. The run is over when nobody holds any of them.

        Raises:
            NumpyBloomError: the run does not fit; the message tells the least that it needs.
        """
        working = self._largest_pass(needs)
        with self.alone():
            self._make_room(sum(needs.cache_tokens), working, needs.draft)
            caches: list[Cache] = [
                KVCache(self.config, tokens, self.blocks) if tokens else OnePassCache()
                for tokens in needs.cache_tokens
            ]
            self._begin(caches, working, needs.draft)
        return caches

    def working_bytes(
        self, tokens: int, longest: int, *, logit_rows: int = 0, target_rows: int = 0
    ) -> int:
        """What a pass takes beside weights and caches, at most.

        Args:
            tokens: T.
            longest: S of the longest sequence at its end.
            logit_rows: rows of logits, of `run`.
            target_rows: targets, of `score`.
        """
        config, threads = self.config, self.store.team.threads
        nbytes = pass_bytes(config, tokens, longest, threads, self.store.scratch_bytes(tokens))
        if logit_rows:
            nbytes += logit_bytes(config, logit_rows)
        if target_rows:
            tile_rows = self.parameters.lm_head.format.tile_rows
            nbytes += score_bytes(config, target_rows, threads, tile_rows)
        return nbytes

    def has_room(self, needs: Needs, *, resident: bool = False) -> bool:
        """Whether `prepare` would succeed and, if all weights are in memory, leave them there.

        Args:
            needs: of the run.
            resident: whether it must bring all weights there.
        """
        needed = self._needed(sum(needs.cache_tokens), self._largest_pass(needs), needs.draft)
        resident = resident or self.bytes_pinned == self.stream.nbytes
        return needed + self._least_weights(resident=resident) <= self.memory

    def has_room_for_pass(
        self, tokens: int, longest: int, *, target_rows: int, resident: bool
    ) -> bool:
        """Whether a pass of `score` takes no more than its part of the memory.

        Args:
            tokens, longest, target_rows: those of `working_bytes`.
            resident: whether it must leave all weights in memory. Else it may take half of what is
                left beside vectors and buffers; the other half holds weights.
        """
        left = self.memory - self.store.vector_bytes
        room = left - self.stream.nbytes if resident else (left - self.stream.buffer_bytes) // 2
        return self.working_bytes(tokens, longest, target_rows=target_rows) <= room

    def forecast(self) -> str:
        """One line on what each pass reads and how long that takes; empty if it reads nothing.

        The disk's rate is measured with the first chunks of the first pass, which are read now.
        """
        per_pass = self.weight_bytes - self.bytes_pinned
        if per_pass == 0:
            return ""
        rate = self.stream.fill()
        return (
            f"{size_text(self.bytes_pinned)} of weights in memory, {size_text(per_pass)} read "
            f"from disk in each pass, at {size_text(rate)}/s: about {per_pass / rate:.2g} s a "
            f"token; each GB of memory more would save {1e9 / rate:.2g} s, and with "
            f"{megabytes_text(self.memory_for_all)} nothing would be read"
        )

    def turn(self, memory: int) -> None:
        """Turn the dial: have more or less memory from now on.

        Raises:
            NumpyBloomError: less than the runs that are not over need.
        """
        with self.alone():
            before, self.memory = self.memory, memory
            try:
                if self._runs:
                    self._make_room(0, 0)
                else:
                    self.store.pin(0)  # the next run will pin what fits
            except NumpyBloomError:
                self.memory = before
                raise

    def watch(self, on_weights: OnWeights) -> None:
        """Tell an onlooker how far passes come, in place of the one before."""
        self.store.in_use.on_chunk = lambda chunk: on_weights(chunk.path.stem, chunk.nbytes)

    def _largest_pass(self, needs: Needs) -> int:
        longest = max(needs.longest, *needs.cache_tokens)
        rows = {"logit_rows": needs.logit_rows, "target_rows": needs.target_rows}
        return needs.beside + self.working_bytes(needs.pass_tokens, longest, **rows)

    def _needed(self, cache_tokens: int, working: int, draft: Resident | None = None) -> int:
        """Bytes of all but weights, with the runs that are not over, a new one, and drafts."""
        drafts = {draft, *(draft for _, draft in self._live().values())} - {None, self}
        elsewhere = sum(draft.resident_bytes for draft in drafts if draft is not None)
        return self._held_bytes(cache_tokens, working) + elsewhere

    def _held_bytes(self, cache_tokens: int, working: int) -> int:
        runs = self._live()
        held = self._cache_bytes(cache_tokens + sum(cache.capacity for cache in runs))
        return self.store.vector_bytes + held + max(working, *(run for run, _ in runs.values()), 0)

    def _begin(self, caches: Sequence[Cache], working: int, draft: Resident | None) -> None:
        with self._runs_lock:
            self._runs.update(dict.fromkeys(caches, (working, draft)))

    def _live(self) -> dict[Cache, tuple[int, Resident | None]]:
        """The runs that are not over. Others ask while a caller that is `alone` begins one."""
        with self._runs_lock:
            return dict(self._runs)

    def _cache_bytes(self, tokens: int) -> int:
        return KVCache.nbytes(self.config, tokens, self.blocks)

    def _least_weights(self, *, resident: bool) -> int:
        """Bytes that weights take at least: all there are, or the buffers they pass through."""
        stream = self.stream
        return stream.nbytes if resident else min(stream.nbytes, stream.buffer_bytes)

    def _make_room(self, cache_tokens: int, working: int, draft: Resident | None = None) -> None:
        """Pin as many weights as fit beside the runs that are not over and a new one.

        Args:
            cache_tokens: that its caches are to hold together.
            working: bytes that its largest pass needs.
            draft: the model that takes its share of the memory.
        """
        stream = self.stream
        needed = self._needed(cache_tokens, working, draft)
        least = needed + self._least_weights(resident=False)
        if self.memory < least:
            held = sum(cache.capacity for cache in self._live()) + cache_tokens
            raise NumpyBloomError(
                f"this run needs at least {megabytes_text(least)} of memory, "
                f"{megabytes_text(self.memory)} may be used: keys and values of {held} tokens take "
                f"{megabytes_text(self._cache_bytes(held))}, activations "
                f"{megabytes_text(working)}; give more memory, or less "
                "to do at once: fewer tokens, threads or beams, a smaller window"
            )
        self.memory_for_all = needed + stream.nbytes
        streamed = self.memory_for_all > self.memory
        self.store.pin(self.memory - needed - (stream.buffer_bytes if streamed else 0))
