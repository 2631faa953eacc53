"""Comparing our forward pass with a recorded one, stage by stage.

A stage is an array that the model passes through its tap; the reference has arrays of the same
names and shapes. What may differ between two right implementations is taken out first: what
softmax is blind to (a constant per row of scores) and how "minus infinity" is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from numpy_bloom.model.cache import KVCache
from numpy_bloom.model.model import Model

Array = npt.NDArray[Any]
Stages = Mapping[str, Array]

TOLERANCE = 2e-5
"""Largest difference, relative to max(1, the stage's largest value). Two float32 computations that
sum in different orders differ by some 1e-6 of that; the smallest planted fault by 1e-4."""

BLOCK_STAGES = (
    "resid_pre",
    "ln1.normalized",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.qk",
    "attn.alibi",
    "attn.mask",
    "attn.scores",
    "attn.pattern",
    "attn.z",
    "attn_out",
    "resid_mid",
    "ln2.normalized",
    "mlp.pre",
    "mlp.post",
    "mlp_out",
    "resid_post",
)

HIDDEN = -1e30
"""Scores below it are masked: we write -inf, transformers the lowest float32."""

LATER_KEYS = {"attn.mask": -np.inf, "attn.scores": -np.inf}
"""What stands for the keys after a slice of queries, which attention leaves out; else 0."""


def stage_names(blocks: int) -> list[str]:
    """All stages of a forward pass, in the order in which they are computed."""
    inner = [f"blocks.{i}.{stage}" for i in range(blocks) for stage in BLOCK_STAGES]
    return ["embed", *inner, "ln_final.normalized", "logits"]


def record_stages(model: Model, ids: Sequence[int]) -> dict[str, Array]:
    """Every stage of one pass over one sequence; what comes in slices of T is put together."""
    pieces: dict[str, list[Array]] = {}

    def tap(stage: str, array: Array, rows: slice) -> Array:
        stages = pieces.setdefault(stage, [])
        assert rows.start == sum(piece.shape[-2] for piece in stages if rows.start)
        stages.append(array.copy())
        return array

    model.run([np.array(ids)], [new_cache(model, len(ids))], last=[len(ids)], tap=tap)
    return {stage: _joined(stage, arrays) for stage, arrays in pieces.items()}


def _joined(stage: str, arrays: list[Array]) -> Array:
    """The slices of a stage as one array, along the last axis but one."""
    if len(arrays) == 1:
        return arrays[0]
    shape = (*arrays[-1].shape[:-2], sum(array.shape[-2] for array in arrays), arrays[-1].shape[-1])
    fill = LATER_KEYS.get(stage.split(".", 2)[-1], 0)
    joined = np.full(shape, fill, dtype=np.result_type(*arrays))
    start = 0
    for array in arrays:
        stop = start + array.shape[-2]
        joined[..., start:stop, : array.shape[-1]] = array
        start = stop
    return joined


@dataclass(frozen=True)
class Divergence:
    """The first stage that is not what it should be, and why."""

    stage: str
    reason: str


def first_divergence(ours: Stages, reference: Stages, tolerance: float) -> Divergence | None:
    """Compare all stages in the order in which we computed them.

    Args:
        tolerance: see `deviation`.

    Returns:
        The first that differs; None if none does.
    """
    assert ours.keys() == reference.keys(), f"stages: {sorted(ours.keys() ^ reference.keys())}"
    for stage, array in ours.items():
        if array.dtype != np.float32:
            return Divergence(stage, f"is {array.dtype}, expected float32")
        if array.shape != reference[stage].shape:
            return Divergence(stage, f"has shape {array.shape}, not {reference[stage].shape}")
        found = deviation(stage, array, reference[stage])
        if not found <= tolerance:
            return Divergence(stage, f"deviates by {found:.2g}, allowed is {tolerance:.2g}")
    return None


def deviation(stage: str, ours: Array, reference: Array) -> float:
    """Largest absolute difference, divided by max(1, largest absolute value of the reference)."""
    ours, reference = _comparable(stage, ours), _comparable(stage, reference)
    return float(np.abs(ours - reference).max() / max(1.0, float(np.abs(reference).max())))


def _comparable(stage: str, array: Array) -> Array:
    """The array without what two right implementations may choose differently."""
    queries, keys = array.shape[-2:]
    match stage.split(".", 2)[-1]:
        case "attn.qk":  # what a query would score with later keys is not always computed
            return np.where(_causal(queries, keys), array, 0)
        case "attn.alibi":
            return np.where(_causal(queries, keys), _from_top(array, ~_causal(queries, keys)), 0)
        case "attn.mask":
            return np.maximum(array, -1)
        case "attn.scores":  # no score is above the top of its row, so 1 marks the masked ones
            return np.where(array < HIDDEN, 1, _from_top(array, array < HIDDEN))
    return array


def _causal(queries: int, keys: int) -> npt.NDArray[np.bool_]:
    """Which keys each of the last `queries` positions may see."""
    return np.tri(queries, keys, keys - queries, dtype=np.bool_)


def _from_top(scores: Array, hidden: npt.NDArray[np.bool_]) -> Array:
    """Each row minus its largest visible score, as softmax takes it."""
    return scores - np.where(hidden, -np.inf, scores).max(axis=-1, keepdims=True)


def new_cache(model: Model, tokens: int) -> KVCache:
    """An empty cache for one sequence."""
    (cache,) = model.prepare(cache_tokens=[tokens], pass_tokens=tokens, logit_rows=tokens)
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
