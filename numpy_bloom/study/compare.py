"""Comparing the stages of two forward passes, ours and another implementation's.

What may differ between two right implementations is taken out first: what softmax is blind to (a
constant per row of scores: we subtract slope times distance, transformers adds slope times
position), what is computed of keys that the mask removes, and how "minus infinity" is written.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.study.stages import LAST_ROWS, local_name
from numpy_bloom.weights.dtypes import Floats

Stages = Mapping[str, Floats]

HIDDEN = -1e30
"""Scores below it are masked: we write -inf, transformers the lowest float32."""


class Divergence(NamedTuple):
    """The first stage that is not what it should be, and why."""

    stage: str
    reason: str

    def __str__(self) -> str:
        return f"{self.stage} {self.reason}"


class Difference(NamedTuple):
    """How far a stage of ours and another's lie apart, each as `deviation` has it.

    Attributes:
        stage: its name.
        deviation: of ours from the other.
        ours_from_exact, other_from_exact: of either from float64; None if that was not asked for.
    """

    stage: str
    deviation: float
    ours_from_exact: float | None = None
    other_from_exact: float | None = None


def compare(ours: Stages, other: Stages, exact: Stages | None) -> list[Difference]:
    """A row for each stage that both have, in our order.

    Raises:
        NumpyBloomError: they have none in common, or one has different shapes.
    """
    common = [name for name in ours if name in other]
    if not common:
        raise NumpyBloomError("the two traces have no stage in common")
    rows = []
    for name in common:
        a, b = ours[name], other[name]
        if a.shape != b.shape:
            raise NumpyBloomError(f"{name} has shape {a.shape} here and {b.shape} there")
        row = Difference(name, deviation(name, a, b))
        if exact is not None:
            best = exact[name][-len(a) :] if name in LAST_ROWS else exact[name]
            row = row._replace(
                ours_from_exact=deviation(name, a, best), other_from_exact=deviation(name, b, best)
            )
        rows.append(row)
    return rows


def first_divergence(ours: Stages, reference: Stages, tolerance: float) -> Divergence | None:
    """Compare all stages in the order in which we computed them.

    Args:
        tolerance: see `deviation`.

    Returns:
        The first that differs; None if none does.

    Raises:
        NumpyBloomError: either has a stage that the other lacks.
    """
    lacking = sorted(ours.keys() ^ reference.keys())
    if lacking:
        raise NumpyBloomError(f"only one of the two has {', '.join(lacking[:5])}")
    for stage, array in ours.items():
        if array.dtype != np.float32:
            return Divergence(stage, f"is {array.dtype}, expected float32")
        if array.shape != reference[stage].shape:
            return Divergence(stage, f"has shape {array.shape}, not {reference[stage].shape}")
        found = deviation(stage, array, reference[stage])
        if not found <= tolerance:
            return Divergence(stage, f"deviates by {found:.2g}, allowed is {tolerance:.2g}")
    return None


def deviation(stage: str, ours: Floats, reference: Floats) -> float:
    """Largest absolute difference, divided by max(1, largest absolute value of the reference)."""
    ours, reference = _comparable(stage, ours), _comparable(stage, reference)
    return float(np.abs(ours - reference).max() / max(1.0, float(np.abs(reference).max())))


def _comparable(stage: str, array: Floats) -> Floats:
    """The array without what two right implementations may choose differently."""
    queries, keys = array.shape[-2:]
    match local_name(stage):
        case "attn.qk":  # what a query would score with later keys is not always computed
            return np.where(_causal(queries, keys), array, 0)
        case "attn.alibi":
            return np.where(_causal(queries, keys), _from_top(array, ~_causal(queries, keys)), 0)
        case "attn.mask":
            return np.maximum(array, -1)
        case "attn.attn_scores":  # no score is above its row's top, so 1 marks the masked ones
            return np.where(array < HIDDEN, 1, _from_top(array, array < HIDDEN))
    return array


def _causal(queries: int, keys: int) -> npt.NDArray[np.bool_]:
    """Which keys each of the last `queries` positions may see."""
    return np.tri(queries, keys, keys - queries, dtype=np.bool_)


def _from_top(scores: Floats, hidden: npt.NDArray[np.bool_]) -> Floats:
    """Each row minus its largest visible score, as softmax takes it."""
    top: Floats = np.where(hidden, -np.inf, scores).max(axis=-1, keepdims=True)
    return scores - top
