"""Engine: llama.cpp, a GGUF file mapped into memory, through llama-cpp-python.

https://llama-cpp-python.readthedocs.io/
"""

from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np

from numpy_bloom.weights.dtypes import Floats

CONTEXT = 512


class LlamaCpp:
    """A model and its context."""

    def __init__(self, path: Path, threads: int) -> None:
        self._llama = llama_cpp.Llama(
            str(path),
            n_ctx=CONTEXT,
            n_batch=CONTEXT,
            n_threads=threads,
            n_threads_batch=threads,
            use_mmap=True,
            verbose=False,
        )

    def reset(self, tokens: int) -> None:
        """Forget the sequence; the context stays."""
        if tokens > CONTEXT:
            raise ValueError(f"{tokens} tokens asked for; the context is made for {CONTEXT}")
        self._llama.reset()

    def forward(self, token_ids: Sequence[int]) -> Floats:
        """One pass; logits (V,). The library keeps them for the last token of a batch only."""
        self._llama.eval(token_ids)
        logits = llama_cpp.llama_get_logits_ith(self._llama.ctx, -1)
        return np.ctypeslib.as_array(logits, shape=(self._llama.n_vocab(),)).copy()


def open_engine(path: Path, threads: int) -> LlamaCpp:
    """Map a GGUF file."""
    return LlamaCpp(path, threads)
