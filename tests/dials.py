"""What the tests of the memory dial share: a model whose matrices have many chunks and tiles."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from checkpoints import Checkpoint, byte_ids
from conversions import converted

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.weights import kernels, store

PROMPT = byte_ids("Todos los seres humanos nacen libres e iguales")  # more than a slice
NEW = 5
EVERYTHING = 1 << 40


class Answer(NamedTuple):
    """All that a model says: logits after the prompt, and a continuation with its probabilities."""

    logits: bytes
    ids: list[int]
    logprobs: list[float]


def answer(model: Bloom) -> Answer:
    tokens = list(model.generate(PROMPT, max_new_tokens=NEW))
    ids, logprobs = [token.id for token in tokens], [token.logprob for token in tokens]
    tokens = len(PROMPT)
    cache = model.model.prepare(cache_tokens=tokens, pass_tokens=tokens, logit_rows=1)
    logits = model.model.run([np.array(PROMPT)], [cache])
    return Answer(logits.tobytes(), ids, logprobs)


def in_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 512 weights, and chunks of four such tiles (in sixteen bits)."""
    monkeypatch.setattr(kernels, "TILE_ELEMENTS", 512)
    monkeypatch.setattr(store, "CHUNK_BYTES", 4096)


def model_folder(folder: Path, dtype: str = "bfloat16", **options: Any) -> Path:
    checkpoint = Checkpoint(
        heads=4, hidden=32, blocks=3, dtype=dtype, lm_head="different", seed=7, **options
    )
    checkpoint.config["eos_token_id"] = None
    return converted(checkpoint, folder)


def least_memory(folder: Path, threads: int) -> int:
    """The least that `answer` needs: all but weights, and the buffers through which they go."""
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=threads) as model:
        model.generate(PROMPT, max_new_tokens=NEW)
        least = model.model.memory_for_all
        stream = model.model.stream
        assert len(stream.chunks) > 20
        return least - stream.nbytes + stream.buffer_bytes


def settings(folder: Path, threads: int) -> list[int]:
    """Memory from the least to more than enough."""
    least = least_memory(folder, threads)
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=threads) as model:
        nbytes = model.model.stream.nbytes
    parts = [0, 0.05, 0.3, 0.5, 0.8, 0.99]
    return [*(least + int(part * nbytes) for part in parts), least + nbytes, EVERYTHING]
