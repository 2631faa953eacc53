"""Engine: this project."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import numpy_bloom
from numpy_bloom.running.memory import Needs
from numpy_bloom.weights.dtypes import Floats


class Ours:
    """The passes that `numpy_bloom.generate` makes, without its choice of tokens."""

    def __init__(self, path: Path, threads: int, memory: str | None) -> None:
        self._bloom = numpy_bloom.load(path, memory=memory, threads=threads)

    def reset(self, tokens: int) -> None:
        """Pin what fits, and make a cache."""
        self._caches = None  # what the old one takes is free for the new one
        self._caches = self._bloom.model.prepare(Needs([tokens], pass_tokens=tokens, logit_rows=1))

    def forward(self, token_ids: Sequence[int]) -> Floats:
        """One pass; logits (V,)."""
        logits: Floats = self._bloom.model.run([np.array(token_ids)], self._caches)[0]
        return logits


def open_engine(path: Path, threads: int, memory: str | None = None) -> Ours:
    """Open a converted folder."""
    return Ours(path, threads, memory)
