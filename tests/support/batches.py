"""What the tests of batches share: a watch on all passes, and what each prompt says alone."""

import random
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.generation import batch
from numpy_bloom.generation.generation import Generation
from numpy_bloom.model.cache import KVCache
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.model.passes import SLICE_TOKENS
from numpy_bloom.running import room
from numpy_bloom.running.model import Model
from numpy_bloom.weights.formats import base
from support.checkpoints import Checkpoint
from support.dials import EVERYTHING, in_many_pieces
from support.threads import no_deadlock

NEW = 8


def endless(seed: int = 0, **options: Any) -> Checkpoint:
    """A random model that says this and that, and does not end a text by itself."""
    ends = {"eos_token_id": None}
    return Checkpoint(heads=3, hidden=24, lm_head="different", seed=seed, config=ends, **options)


@contextmanager
def many_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within it a small model is streamed in chunks of one tile each; and prompts are long."""
    in_many_pieces(monkeypatch)
    monkeypatch.setattr(base, "TILE_ELEMENTS", 2048)
    monkeypatch.setattr(batch, "PASS_TOKENS", 24)
    with no_deadlock(240):
        yield


@contextmanager
def ending(model: Bloom, ids: Iterable[int]) -> Iterator[None]:
    """Within it any of some tokens ends a text."""
    holders: tuple[Any, ...] = (model, model.model)
    config = model.config
    for holder in holders:
        holder.config = replace(config, eos_token_ids=tuple(ids))
    try:
        yield
    finally:
        for holder in holders:
            holder.config = config


class Said(NamedTuple):
    """All that a generation tells of its text."""

    token_ids: list[int]
    text: str
    finish_reason: str | None


def said(generation: Generation) -> Said:
    return Said(list(generation.token_ids), generation.text, generation.finish_reason)


def alone(model: Bloom, prompts: Sequence[Any], **options: Any) -> list[Said]:
    """What each prompt says without the others."""
    found = []
    for prompt in prompts:
        generation = model.generate(prompt, **options)
        list(generation)
        found.append(said(generation))
    return found


def some_prompts(numbers: random.Random, count: int, longest: int = 40) -> list[list[int]]:
    """Of different lengths, the shortest and the longest among them."""
    lengths = [1, longest, *(numbers.randint(1, longest) for _ in range(count - 2))]
    numbers.shuffle(lengths)
    return [[numbers.randrange(4, 260) for _ in range(length)] for length in lengths]


def to_the_end(generations: Sequence[Generation]) -> list[Said]:
    for generation in generations:
        for _ in generation:
            pass
    return [said(generation) for generation in generations]


def needed_alone(folder: Path, threads: int, prompts: list[list[int]]) -> tuple[int, int]:
    """Memory with which each of the prompts can be continued alone: the least, and without
    reading."""
    needed = 0
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=threads) as model:
        for prompt in prompts:
            model.generate(prompt, max_new_tokens=NEW)
            needed = max(needed, model.model.memory_for_all)
        stream = model.model.stream
        return needed - stream.nbytes + stream.buffer_bytes, needed


class Pass(NamedTuple):
    """One pass of a model.

    Attributes:
        model: whose.
        fed: for each sequence its new tokens.
        caches: for each sequence its cache, by number.
        nbytes: that everything takes in this pass: weights, caches, activations.
        resident: whether all weights are in memory.
        bytes_read: by this pass.
    """

    model: Model
    fed: list[list[int]]
    caches: list[int]
    nbytes: int
    resident: bool
    bytes_read: int


def watch_passes(monkeypatch: pytest.MonkeyPatch) -> list[Pass]:
    """A list that grows with each pass of any model."""
    passes: list[Pass] = []
    alive: weakref.WeakKeyDictionary[KVCache, BloomConfig] = weakref.WeakKeyDictionary()
    real = Model.run

    class Watched(KVCache):
        def __init__(self, config: BloomConfig, *args: Any) -> None:
            super().__init__(config, *args)
            alive[self] = config

    def run(self: Model, sequences: Any, caches: Any, *, last: Any = None, **tap: Any) -> Any:
        stream, lengths = self.stream, [len(ids) for ids in sequences]
        held = [cache for cache, config in alive.items() if config is self.config]
        # Activations: of a slice of each sequence, with all that it sees.
        rows = [min(SLICE_TOKENS, length) for length in lengths]
        seen = [cache.capacity * row for cache, row in zip(caches, rows, strict=True)]
        longest = -(-max(seen) // min(SLICE_TOKENS, sum(lengths)))
        logits = len(sequences) if last is None else sum(last)
        nbytes = (
            self.store.vector_bytes
            + stream.bytes_pinned
            + (stream.bytes_pinned < stream.nbytes) * stream.buffer_bytes
            + KVCache.nbytes(self.config, sum(cache.capacity for cache in held))
            + self.working_bytes(sum(lengths), longest, logit_rows=logits)
        )
        before = stream.bytes_read
        result = real(self, sequences, caches, last=last, **tap)
        passes.append(
            Pass(
                self,
                [np.asarray(ids).tolist() for ids in sequences],
                [id(cache) for cache in caches],
                nbytes,
                stream.bytes_pinned == stream.nbytes,
                stream.bytes_read - before,
            )
        )
        return result

    monkeypatch.setattr(room, "KVCache", Watched)
    monkeypatch.setattr(Model, "run", run)
    return passes
