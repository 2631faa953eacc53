"""The types in which numbers are stored, and the way of the floating ones to float32 and back.

NumPy has no bfloat16, so its values travel as their 16 bits (`uint16`); a dtype is therefore
always a name of `STORED`, never a NumPy dtype alone. Little-endian throughout, as safetensors is.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Stored = npt.NDArray[Any]
"""An array of one of the types of `STORED`."""

STORED: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "uint16": np.dtype("<u2"),
    "uint64": np.dtype("<u8"),
}
"""How each dtype lies in memory and on disk."""

FLOATING = ("float32", "float16", "bfloat16")
"""The dtypes that a checkpoint's tensors may have; the others are parts of our own formats."""

_INFINITY = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}
"""The bits of infinity; NaNs have larger ones."""

SAFETENSORS_CODES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int8": "I8",
    "uint8": "U8",
    "uint16": "U16",
    "uint64": "U64",
}
"""Their names in a safetensors header."""


def widen(stored: Stored, dtype: str) -> Floats:
    """Widen stored values to float32; every float16 and bfloat16 is exactly a float32.

    Args:
        stored: array of any shape, of NumPy type `STORED[dtype]`.
        dtype: a name of `FLOATING`.

    Returns:
        A new float32 array of the same shape (the same array if it is float32 already).
    """
    if dtype == "bfloat16":  # the upper half of a float32
        bits: Floats = np.left_shift(stored, np.uint32(16), dtype=np.uint32).view(np.float32)
        return bits
    values: Floats = stored.astype(np.float32, copy=False)
    if dtype == "float16":  # a signalling NaN becomes a quiet one, as in hardware and torch
        values.view(np.uint32)[np.isnan(values)] |= np.uint32(0x00400000)
    return values


def narrow(values: Floats, dtype: str) -> Stored:
    """Round float32 values to a stored type, to nearest and ties to even, as IEEE 754 does.

    Args:
        values: float32 array of any shape. NaN stays NaN; what is too large becomes inf.
        dtype: a name of `FLOATING`.
    """
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
    with np.errstate(over="ignore"):
        return values.astype(STORED[dtype], copy=False)


def all_finite(stored: Stored, dtype: str) -> bool:
    """Whether no value of a floating type is NaN or infinite (both have all exponent bits set).

    As signed integers these are the largest of the positive values, as unsigned ones the largest
    of the negative ones: two maxima, and no array beside.
    """
    bits = STORED[dtype].itemsize * 8
    infinity = _INFINITY[dtype]
    positive = stored.view(f"<i{bits // 8}").max(initial=0)
    negative = stored.view(f"<u{bits // 8}").max(initial=0)
    return int(positive) < infinity and int(negative) < infinity + (1 << (bits - 1))
