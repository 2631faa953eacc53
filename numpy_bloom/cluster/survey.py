"""What a worker finds out about itself, before blocks are dealt."""

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
from distributed import get_worker

from numpy_bloom.cluster.plan import Worker
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.running.memory import Needs
from numpy_bloom.running.model import Leg, Model
from numpy_bloom.weights.budget import default_memory
from numpy_bloom.weights.folder import block_file

BESIDE = 150 * 10**6
"""Bytes that interpreter, libraries and Dask take in a worker."""

LIMITS = ("target", "spill", "pause", "terminate")
"""At these shares of its memory limit a Dask worker writes results to disk, stops, or is killed
(https://distributed.dask.org/en/stable/worker-memory.html): the weights must stay below."""

ROUNDS = 3


def survey(
    folder: Path,
    config: BloomConfig,
    sizes: Mapping[str, int],
    memory: int | None,
    threads: int | None,
) -> Worker:
    """Look for files and memory, and measure what a block takes.

    Args:
        folder: where the model should be.
        config: its sizes.
        sizes: bytes of its files.
        memory: most that weights and runs may take here.
        threads: most that may compute.

    Raises:
        NumpyBloomError: there is too little memory for one block, or the block is damaged.
    """
    worker = get_worker()
    files = frozenset(name for name, size in sizes.items() if _size(folder / name) == size)
    own = _own_memory(worker.memory_manager.memory_limit)
    threads = min(threads or worker.state.nthreads, worker.state.nthreads)
    offer = Worker(worker.address, min(memory or own, own), threads, files)
    have = [i for i in range(config.num_hidden_layers) if block_file(i) in files]
    return measured(offer, folder, config, have[0]) if have else offer


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _own_memory(limit: int | None) -> int:
    """Bytes that Dask lets a worker take, and the machine."""
    if not limit:
        return default_memory()
    shares = [dask.config.get(f"distributed.worker.memory.{name}") for name in LIMITS]
    share = min([1.0, *(share for share in shares if share)])
    return max(1, min(int(share * limit) - BESIDE, default_memory()))


def measured(worker: Worker, folder: Path, config: BloomConfig, block: int) -> Worker:
    """The same with rates: one block is read and gone through with one token."""
    blocks = range(block, block + 1)
    model = Model.open(
        folder,
        config,
        memory=worker.memory,
        threads=worker.threads,
        blocks=blocks,
        embeds=False,
        unembeds=False,
    )
    with closing(model):
        start = time.perf_counter()
        caches = model.prepare(Needs.of_one_pass([1]))
        reading = time.perf_counter() - start
        x = np.zeros((1, config.hidden_size), dtype=np.float32)
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            model.run_leg(x, Leg([1]), caches)
            seconds.append(time.perf_counter() - start)
        pinned = model.bytes_pinned
        return replace(
            worker,
            rate=model.weight_bytes / min(seconds),
            disk_rate=pinned / reading if pinned else model.weight_bytes / min(seconds),
        )
