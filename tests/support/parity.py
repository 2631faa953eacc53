"""Comparing our forward pass with a recorded one, and running it in passes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from numpy_bloom.model.cache import KVCache
from numpy_bloom.running.memory import Needs
from numpy_bloom.running.model import Model

Array = npt.NDArray[Any]
Stages = Mapping[str, Array]

TOLERANCE = 2e-5
"""Largest difference, relative to max(1, the stage's largest value). Two float32 computations that
sum in different orders differ by some 1e-6 of that; the smallest planted fault by 1e-4."""


def new_cache(model: Model, tokens: int) -> KVCache:
    """An empty cache for one sequence."""
    (cache,) = model.prepare(Needs([tokens], pass_tokens=tokens, logit_rows=tokens))
    return cache


def run_in_passes(model: Model, ids: Sequence[int], lengths: Sequence[int]) -> Array:
    """Logits (T, V) of one sequence that is cut into passes of these lengths."""
    assert sum(lengths) == len(ids)
    cache = new_cache(model, len(ids))
    passes = np.split(np.array(ids), np.cumsum(lengths)[:-1])
    return np.concatenate([model.run([new], [cache], last=[len(new)]) for new in passes])


def filled_cache(model: Model, ids: Sequence[int], capacity: int) -> KVCache:
    """A cache that holds these tokens already; none is fine too."""
    cache = new_cache(model, capacity)
    if ids:
        model.run([np.array(ids)], [cache])
    return cache
