"""What the tests of clusters share: models, and what is found out about workers."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.batches import endless
from support.checkpoints import byte_ids
from support.conversions import converted

distributed = pytest.importorskip("distributed", reason="the extra cluster is not installed")
dask = pytest.importorskip("dask")

import numpy_bloom  # noqa: E402
from numpy_bloom.bloom import Bloom  # noqa: E402
from numpy_bloom.cluster import share  # noqa: E402

PROMPTS = [byte_ids(text) for text in ("Todos los seres humanos", "nacen libres", "e iguales en")]
NEW = 7


def model_folder(folder: Path, **options: Any) -> Path:
    """A random model of six blocks, whose head is not its embeddings."""
    return converted(endless(blocks=6, dtype="bfloat16", **options), folder)


@contextmanager
def opened(folder: Path | None, cluster: Any, **options: Any) -> Iterator[Bloom]:
    with numpy_bloom.load(folder, cluster=cluster, **options) as model:
        yield model


def pids(model: Bloom) -> dict[str, int]:
    """Processes of all workers, by address."""
    client = model.model._chain.workers.client
    return dict(client.run(os.getpid))


def strike(model: Bloom, place: int, number: int = signal.SIGKILL) -> None:
    """Kill, or stop, the process that holds one of the parts."""
    os.kill(pids(model)[holders(model)[place]], number)


def holders(model: Bloom) -> list[str]:
    """Addresses of the workers that hold blocks, in the order of a pass."""
    return [part.worker.address for part in model.model._chain.parts]


def caches_held(model: Bloom) -> list[int]:
    """How many caches each share has."""
    client = model.model._chain.workers.client
    told = client.run(lambda: [len(one._caches) for one in share._here.values()])
    return [count for counts in told.values() for count in counts]


def generated(model: Bloom, prompt: Any, **options: Any) -> list[tuple[int, float]]:
    """The new tokens, each with its log-probability."""
    tokens = model.generate(prompt, max_new_tokens=NEW, **options)
    return [(token.id, token.logprob) for token in tokens]


def texts(model: Bloom, **options: Any) -> list[list[int]]:
    """What three prompts say together."""
    generations = model.generate_batch(PROMPTS, max_new_tokens=NEW, **options)
    for generation in generations:
        list(generation)
    return [generation.token_ids for generation in generations]
