"""The two things the model does with a big matrix: multiply by it, and look up its rows."""

import numpy as np
import numpy.typing as npt

from numpy_bloom.weights.dtypes import Floats, widen
from numpy_bloom.weights.store import Matrix


def linear(x: Floats, weight: Matrix) -> Floats:
    """x · Wᵀ, in float32, without a float32 copy of W.

    Args:
        x: (T, inputs) float32.
        weight: (outputs, inputs), of any stored type.

    Returns:
        (T, outputs) float32.
    """
    y = np.empty((len(x), weight.shape[0]), dtype=np.float32)
    for rows, stored in weight.chunks():
        y[:, rows] = x @ widen(stored, weight.dtype).T
    return y


def lookup(weight: Matrix, ids: npt.NDArray[np.int64]) -> Floats:
    """Rows of W by number, as float32.

    Args:
        ids: (T,), each below the number of rows.

    Returns:
        (T, inputs) float32.
    """
    return np.concatenate([widen(weight.rows(i, i + 1), weight.dtype) for i in ids.tolist()])
