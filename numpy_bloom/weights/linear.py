"""What is done with a big matrix: multiply by it, at once or by tiles, widen it, look up rows."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.matrix import Matrix, TileInUse
from numpy_bloom.weights.processes import MOST_TOKENS

Multiply = Callable[[Floats], None]
"""Writes the product of x with one tile into an array (T, rows) float32."""


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

    def work(rows: slice, multiply: Multiply) -> None:
        multiply(y[:, rows])

    processes = weight.processes if len(x) <= MOST_TOKENS else None
    if processes is None:
        for_each_tile(x, weight, work)
    else:
        tiles = [(tile.rows, tile.stored) for tile in weight.tiles()]
        processes.multiply(weight.number, weight.format, tiles, x, y)
    return y


def for_each_tile(x: Floats, weight: Matrix, work: Callable[[slice, Multiply], object]) -> None:
    """Multiply x by some rows of W at a time, for results that need not be there all at once.

    Args:
        x: (T, inputs) float32.
        weight: (outputs, inputs), of any stored type.
        work: called once for each tile, from several threads and in no fixed order, with the rows
            of W that form the tile and a function that writes x · W[rows]ᵀ where it is told to.
            Which rows form a tile depends on the matrix alone.

    Raises:
        NumpyBloomError: the weights cannot be read.
    """
    multiply = weight.format.product(x)

    def work_on(tile: TileInUse) -> None:
        try:
            work(tile.rows, lambda out: multiply(tile.stored, out))
        finally:
            tile.done()

    weight.team.run(work_on, weight.tiles())


def widened(weight: Matrix) -> Iterator[tuple[slice, Floats]]:
    """All of W as float32, some rows at a time, for arithmetic of one's own.

    Yields:
        Which rows, and their numbers (rows, inputs), in order.

    Raises:
        NumpyBloomError: the weights cannot be read.
    """
    for tile in weight.tiles():
        yield tile.rows, weight.format.widen(tile.stored)
        tile.done()


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
