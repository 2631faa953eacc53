"""The formats of matrices, one file for each family."""

from numpy_bloom.weights.formats.base import Encoder, Format, Tile
from numpy_bloom.weights.formats.floating import (
    BFloat16,
    Float16,
    Float32,
    Floating,
    FloatingEncoder,
)
from numpy_bloom.weights.formats.int4 import Int4, Int4Encoder
from numpy_bloom.weights.formats.int8 import Int8, Int8Encoder
from numpy_bloom.weights.formats.packed import PackedBFloat16, PackedEncoder

__all__ = ["BY_STORED_DTYPE", "FORMATS", "Encoder", "Format", "Tile", "encoder"]

FORMATS: dict[str, type[Format]] = {
    format.dtype: format for format in (Float32, BFloat16, Float16, PackedBFloat16, Int8, Int4)
}
"""By the name that `--dtype` and the manifest have."""

BY_STORED_DTYPE = {format.stored_dtype: format for format in FORMATS.values()}


def encoder(dtype: str, shape: tuple[int, ...]) -> Encoder:
    """What turns a tensor's rows into a format of `FORMATS`."""
    if dtype == "int8":
        return Int8Encoder(shape)
    if dtype == "int4":
        return Int4Encoder(shape)
    if dtype == "bfloat16-packed":
        return PackedEncoder(shape)
    floating = FORMATS[dtype]
    assert issubclass(floating, Floating)
    return FloatingEncoder(shape, floating)
