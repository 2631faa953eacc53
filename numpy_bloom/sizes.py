"""Sizes in bytes as people write them."""

import math
import re

from numpy_bloom.errors import OptionError

UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_size(size: str | int) -> int:
    """Bytes of a size such as `400MB`, `2.5 GiB` or a plain number of bytes.

    Raises:
        OptionError: it is none, not positive, or beyond all memory.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B)?\s*", str(size), re.IGNORECASE)
    nbytes = float(match[1]) * UNITS[(match[2] or "B").upper()] if match else 0
    if not 1 <= nbytes < 1 << 63:
        raise OptionError(f"memory is {size!r}; expected a size such as 400MB, 3GB or 2GiB")
    return int(nbytes)


def size_text(nbytes: float) -> str:
    """A size for people: `352 GB`, `5.89 MB`, `0 B`."""
    unit = next((one for one in ("B", "KB", "MB", "GB") if nbytes < 999.5 * UNITS[one]), "TB")
    return f"{nbytes / UNITS[unit]:.3g} {unit}"


def megabytes_text(nbytes: int) -> str:
    """Tenths of megabytes, rounded up, so that what is called enough is enough."""
    return f"{math.ceil(nbytes / 1e5) / 10:,.1f} MB"
