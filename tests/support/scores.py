"""What the tests of scores share: a text, and what its tokens' log-probabilities should be."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.running.memory import Needs
from support.checkpoints import VOCAB_SIZE
from support.dials import EVERYTHING

Doubles = npt.NDArray[np.float64]

IDS = np.random.default_rng(5).integers(0, VOCAB_SIZE, 70)  # more than two slices
TOLERANCE = 3e-6
"""Logits around 10 have a last bit of 1e-6, and come from sums in another order."""


def from_logits(model: Bloom, ids: npt.NDArray[np.int64]) -> Doubles:
    """What `score` should say: log-softmax in float64, at the token that follows."""
    logits = model(ids).astype(np.float64)[:-1]  # (T - 1, V)
    logits -= logits.max(axis=-1, keepdims=True)
    log_sums = np.log(np.exp(logits).sum(axis=-1))
    return np.array(logits[np.arange(len(ids) - 1), ids[1:]] - log_sums)


def least_memory(folder: Path, threads: int, lengths: list[int]) -> tuple[int, int]:
    """The least that scoring such sequences needs, and bytes of all weights."""
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=threads) as model:
        model.model.prepare(Needs.of_one_pass(lengths, target_rows=sum(lengths)))
        stream = model.model.stream
        least = model.model.memory_for_all - stream.nbytes + stream.buffer_bytes
        return least, stream.nbytes
