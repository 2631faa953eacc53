"""Eight-bit integers: a scale for each row and one for each column.

W[r, c] = row_scale[r] · column_scale[c] · integer, from -127 to 127. A column's scale is its
largest magnitude, a row's scale a 127th of the largest that is left: a column of outliers, of which
BLOOM's family has some (Dettmers et al. 2022, https://arxiv.org/abs/2208.07339), then takes no
digits from the others. At run time columns cost nothing: x is multiplied by their scales once.
(SmoothQuant moves scales between weights and activations in the same way: Xiao et al. 2022,
https://arxiv.org/abs/2211.10438.)
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from numpy_bloom.weights.dtypes import Floats, Stored, widen
from numpy_bloom.weights.formats.base import (
    Bytes,
    Encoder,
    Format,
    Product,
    filled_up,
    multiply_into,
    scratch,
)
from numpy_bloom.weights.safetensors_file import Spec

LARGEST = 127
ROW_SCALE, COLUMN_SCALE = ".row_scale", ".column_scale"

Tile = tuple[npt.NDArray[np.int8], Floats]
"""Integers (rows, inputs) and their rows' scales."""


class Int8(Format):
    """Row after row of integers, with float32 scales beside."""

    dtype = stored_dtype = "int8"

    def __init__(self, shape: tuple[int, ...], beside: Mapping[str, Stored]) -> None:
        super().__init__(shape, beside)
        self._row_scale: Floats = beside[ROW_SCALE]
        self._column_scale: Floats = beside[COLUMN_SCALE]

    @classmethod
    def nbytes(cls, rows: int, columns: int) -> int:
        return rows * columns

    @classmethod
    def arrays(cls, shape: tuple[int, ...]) -> dict[str, Spec]:
        rows, columns = shape
        return {
            "": ("int8", shape),
            ROW_SCALE: ("float32", (rows,)),
            COLUMN_SCALE: ("float32", (columns,)),
        }

    def tile(self, content: Bytes, rows: slice) -> Tile:
        return content.view(np.int8).reshape(-1, self.shape[1]), self._row_scale[rows]

    def widen(self, tile: Tile) -> Floats:
        integers, row_scale = tile
        values: Floats = integers * row_scale[:, None]
        return values * self._column_scale

    def product(self, x: Floats) -> Product:
        x = filled_up(x * self._column_scale)

        def multiply(tile: Tile, out: Floats) -> None:
            integers, row_scale = tile
            wide = scratch(integers.size).view(np.float32).reshape(integers.shape)
            np.copyto(wide, integers)
            multiply_into(out, wide, x)
            out *= row_scale

        return multiply


class ScaledEncoder(Encoder):
    """What encoders of integers share: columns that are scaled to the largest magnitude 1."""

    surveys = True

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.column_scale: Floats = np.zeros(shape[1], dtype=np.float32)

    def survey(self, values: Stored, dtype: str) -> None:
        magnitudes = np.abs(widen(values, dtype)).max(axis=0)
        np.maximum(self.column_scale, magnitudes, out=self.column_scale)

    def scaled(self, values: Stored, dtype: str, columns: slice = slice(None)) -> Floats:
        """Some columns of some rows, between -1 and 1."""
        scale = self.column_scale[columns].copy()
        scale[scale == 0] = 1
        return widen(values[:, columns], dtype) / scale


class Int8Encoder(ScaledEncoder):
    """Rounds to `Int8`."""

    format = Int8

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self._row_scales: list[Floats] = []

    def encode(self, values: Stored, dtype: str) -> Stored:
        scaled = self.scaled(values, dtype)
        row_scale = np.abs(scaled).max(axis=1) / np.float32(LARGEST)
        row_scale = np.maximum(row_scale, np.finfo(np.float32).tiny)  # of rows that are all zero
        self._row_scales.append(row_scale)
        scaled /= row_scale[:, None]
        return np.rint(scaled, out=scaled).astype(np.int8)

    def beside(self) -> list[Stored]:
        return [np.concatenate(self._row_scales), self.column_scale]
