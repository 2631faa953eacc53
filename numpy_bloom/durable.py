"""Writes that survive a crash: a file has its name only when all of it is on disk."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from numpy_bloom.errors import failing_as

UNFINISHED = ".new"
"""What the name of a file ends with until it is complete."""

PIECE_BYTES = 8 << 20


def put(path: Path, content: bytes) -> None:
    """Write a small file, in the place of an older one if there is one."""
    unfinished = path.with_name(path.name + UNFINISHED)
    with failing_as(f"cannot write {path}"), unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        give_name(file.fileno(), unfinished, path)


def give_name(handle: int, unfinished: Path, path: Path) -> None:
    """See that an open file is on disk, then that its name is."""
    os.fsync(handle)
    unfinished.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path, progress: Callable[[int], object] = lambda _bytes: None) -> str:
    """The checksum of what is on disk: where the platform can, the page cache is not asked."""
    checksum = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while piece := file.read(PIECE_BYTES):
            checksum.update(piece)
            progress(len(piece))
    return checksum.hexdigest()
