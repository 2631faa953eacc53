"""What the tests of the memory dial share: a model whose matrices have many chunks and tiles."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.running.memory import Needs
from numpy_bloom.weights import store
from numpy_bloom.weights.dtypes import FLOATING
from numpy_bloom.weights.formats import FORMATS, base, int4
from support.checkpoints import Checkpoint, byte_ids
from support.conversions import converted

TEXT = "Todos los seres humanos nacen libres e iguales"
PROMPT = byte_ids(TEXT)  # more than a slice
NEW = 3
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
    caches = model.model.prepare(Needs([tokens], pass_tokens=tokens, logit_rows=1))
    logits = model.model.run([np.array(PROMPT)], caches)
    return Answer(logits.tobytes(), ids, logprobs)


def in_many_pieces(monkeypatch: pytest.MonkeyPatch, dtype: str = "bfloat16") -> None:
    """Tiles of 1024 weights (but of no fewer than 16 rows, where rows lie in blocks), and chunks of
    two such tiles. Blocks of int4, too, have 16 rows."""
    monkeypatch.setattr(base, "LEAST_ROWS", 1)
    monkeypatch.setattr(base, "TILE_ELEMENTS", 1024)
    monkeypatch.setattr(base, "TILE_UNIT", 1)
    monkeypatch.setattr(int4.Int4, "block_rows", 16)
    monkeypatch.setattr(int4, "STRIP_ELEMENTS", 1024)
    monkeypatch.setattr(store, "CHUNK_BYTES", 2 * FORMATS[dtype].nbytes(32, 32))


def model_folder(folder: Path, dtype: str = "bfloat16", *, blocks: int = 2, **options: Any) -> Path:
    """A model whose matrices are all of one format. Written under `in_many_pieces`, if int4."""
    checkpoint = Checkpoint(
        heads=4,
        hidden=32,
        blocks=blocks,
        dtype=dtype if dtype in FLOATING else "float32",
        lm_head="different",
        seed=9,
        **options,
    )
    checkpoint.config["eos_token_id"] = None
    model = converted(checkpoint, folder, dtype, head_dtype=dtype)
    manifest = json.loads((model / "manifest.json").read_text())
    assert (manifest["dtype"], manifest["head_dtype"]) == (dtype, dtype)
    return model


def least_memory(folder: Path, threads: int) -> int:
    """The least that `answer` needs: all but weights, and the buffers through which they go."""
    return settings(folder, threads)[0]


def share_pinned(model: Bloom) -> float:
    """Of the weights, when `answer` begins."""
    model.generate(PROMPT, max_new_tokens=NEW)
    return model.model.stream.bytes_pinned / model.model.stream.nbytes


def settings(folder: Path, threads: int) -> list[int]:
    """Memory from the least to more than enough."""
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=threads) as model:
        model.generate(PROMPT, max_new_tokens=NEW)
        stream, needed = model.model.stream, model.model.memory_for_all
        assert len(stream.chunks) > 12
        nbytes, least = stream.nbytes, needed - stream.nbytes + stream.buffer_bytes
    parts = [0, 0.1, 0.2, 0.3, 0.5, 0.6]
    return [*(least + int(part * nbytes) for part in parts), least + nbytes, EVERYTHING]
