"""The two things the model does with a big matrix: multiply by it, and look up its rows."""

import numpy as np
import numpy.typing as npt

from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.kernels import product
from numpy_bloom.weights.store import Matrix, Tile


def linear(x: Floats, weight: Matrix) -> Floats:
    """x · Wᵀ, in float32, without a float32 copy of W.

    Args:
        x: (T, inputs) float32.
        weight: (outputs, inputs), of any stored type.

    Returns:
        (T, outputs) float32.

    Raises:
        NumpyBloomError: the weights cannot be read.
    """
    y = np.empty((len(x), weight.shape[0]), dtype=np.float32)
    multiply = product(x, weight.dtype)

    def work(tile: Tile) -> None:
        try:
            multiply(tile.stored, y[:, tile.rows])
        finally:
            tile.done()

    try:
        weight.team.run(work, weight.tiles())
    finally:
        weight.release()
    return y


def lookup(weight: Matrix, ids: npt.NDArray[np.int64]) -> Floats:
    """Rows of W by number, as float32.

    Args:
        ids: (T,), each below the number of rows.

    Returns:
        (T, inputs) float32.

    Raises:
        NumpyBloomError: the weights cannot be read.
    """
    unique, places = np.unique(ids, return_inverse=True)
    rows = np.empty((len(unique), weight.shape[1]), dtype=np.float32)

    def work(place: int) -> None:
        rows[place] = weight.row(int(unique[place]))

    weight.team.run(work, iter(range(len(unique))))
    return rows[places]
