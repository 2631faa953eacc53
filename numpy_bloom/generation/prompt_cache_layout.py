"""How a text lies in a prompt cache, and the file's header.

A safetensors file, laid out for the whole text of S tokens at once and sparse until it is filled:

    tokens       (S, 4) uint64         a record of each token: its id; its log-probability (the bits
                                       of a float64); 0, or 1 + the guesses that may follow, if a
                                       pass ended with it; and a checksum
    checksums    (S,) uint64           of each token's keys and values
    keys_values  (S, L, 2, N, D) float32

A record's checksum covers the header and all records before it, a token's other checksum its keys
and values and its record: CRC-32 with bit 32 set, so that none is 0 and zeros are no record.
"""

import json
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.safetensors_file import header_bytes

FORMAT = "numpy-bloom kept text 1"
BEGINNING = f'{{"__metadata__":{{"format":"{FORMAT}"'.encode()
"""Of a header. A file without it is somebody's own, and is left alone whatever is to be ignored."""
MOST_HEADER_BYTES = 100_000_000
"""As the safetensors library has it."""
RECORD = struct.Struct("<QdQQ")
CONTENT = struct.Struct("<QdQ")
"""A record without its checksum."""


class DamagedError(NumpyBloomError):
    """Something in the file is not what was written."""

    def __init__(self, path: Path, what: str) -> None:
        self.what = what
        super().__init__(
            f"{path} is damaged: {what}; choose another file, or ignore what is damaged "
            "(ignore_damaged_cache, --ignore-damaged-cache)"
        )


class Layout(NamedTuple):
    """Where things lie.

    Attributes:
        header: the beginning of the file.
        tokens: S.
        slab: (L, 2, N, D), the shape of one token's keys and values.
    """

    header: bytes
    tokens: int
    slab: tuple[int, ...]

    @classmethod
    def of(cls, about: str, tokens: int, slab: Sequence[int]) -> "Layout":
        """For a text of so many tokens; `about` tells what it is."""
        arrays = {
            "tokens": ("uint64", (tokens, 4)),
            "checksums": ("uint64", (tokens,)),
            "keys_values": ("float32", (tokens, *slab)),
        }
        header = header_bytes(arrays, {"format": FORMAT, "about": about})
        return cls(header, tokens, tuple(slab))

    def record_at(self, place: int) -> int:
        return len(self.header) + RECORD.size * place

    def checksum_at(self, place: int) -> int:
        return self.record_at(self.tokens) + 8 * place

    def slab_at(self, place: int) -> int:
        return self.checksum_at(self.tokens) + 4 * math.prod(self.slab) * place

    @property
    def nbytes(self) -> int:
        return self.slab_at(self.tokens)


def is_ours(handle: int) -> bool:
    """Whether a file begins as those of this kind do."""
    return os.pread(handle, len(BEGINNING), 8) == BEGINNING


def read_header(handle: int, path: Path) -> tuple[Layout, dict[str, Any]]:
    """What a file says of itself. It must be what would be written, byte for byte."""
    if not is_ours(handle):
        raise NumpyBloomError(f"{path} is no '{FORMAT}'; choose another file")
    size = os.fstat(handle).st_size
    prefix = bytearray(8)
    read_whole(handle, path, prefix, 0)
    length = int.from_bytes(prefix, "little")
    if not 0 < length <= min(MOST_HEADER_BYTES, size - 8):
        raise DamagedError(path, f"its header would have {length:,} bytes")
    text = bytearray(length)
    read_whole(handle, path, text, 8)
    try:
        header = json.loads(text)
        metadata = header["__metadata__"]
        about = json.loads(metadata["about"])
        shape = header["keys_values"]["shape"]
        if len(shape) != 5 or not all(type(length) is int and length > 0 for length in shape):
            raise DamagedError(path, f"keys and values have shape {shape}")
        layout = Layout.of(metadata["about"], shape[0], shape[1:])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(path, "its header is wrong") from error
    if layout.header != prefix + text or not isinstance(about, dict):
        raise DamagedError(path, "its header is wrong")
    if layout.nbytes != size:
        raise DamagedError(path, f"it has {size:,} bytes, expected {layout.nbytes:,}")
    return layout, about


def read_whole(handle: int, path: Path, buffer: Any, offset: int) -> None:
    rest = memoryview(buffer).cast("B")
    while rest:
        read = os.preadv(handle, [rest], offset)
        if not read:
            raise DamagedError(path, "it ends early")
        rest, offset = rest[read:], offset + read


def checksum_of(content: Any, before: int) -> int:
    return zlib.crc32(content, before & 0xFFFFFFFF) | 1 << 32
