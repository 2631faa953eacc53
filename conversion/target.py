"""The folder that is made: what may be replaced, what lies beside, how it gets its name."""

import shutil
from pathlib import Path

from numpy_bloom.durable import UNFINISHED, sync_folder
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.sizes import size_text
from numpy_bloom.weights.manifest import ARRAYS_SUFFIX, MANIFEST

PARTIAL, REPLACED = ".partial", ".replaced"
"""What the names of a conversion's own folders, beside the target, end with."""


def check_replaceable(target: Path) -> None:
    """See that a folder, if there is one, is a converted model.

    Raises:
        NumpyBloomError: it is something else.
    """
    if target.exists() and not (target / MANIFEST).is_file():
        raise NumpyBloomError(f"{target} exists and is no converted model; choose another target")


def check_removable(target: Path) -> None:
    """See that a folder, if there is one, holds nothing but what conversions leave.

    Raises:
        NumpyBloomError: it does.
    """
    if target.exists() and (foreign := _foreign(target)):
        raise NumpyBloomError(
            f"{target} holds {foreign[0]}, which no conversion left; move it, or choose another "
            "target"
        )


def check_space(nbytes: int, folder: Path, way_out: str) -> None:
    """See that so many bytes more fit the disk of a folder.

    Raises:
        NumpyBloomError: they do not.
    """
    free = free_bytes(folder)
    if nbytes > free:
        raise NumpyBloomError(
            f"the disk of {folder.parent} has {size_text(free)} free, expected "
            f"{size_text(nbytes - free)} more; free some, {way_out}"
        )


def free_bytes(folder: Path) -> int:
    """What the disk of a folder has free."""
    return shutil.disk_usage(folder).free


def name_folder(
    folder: Path, target: Path, replaced: Path, journal: Path, *, overwrite: bool
) -> None:
    """Rename a complete folder to `target`.

    Args:
        folder: the complete one.
        target: its name from now on.
        replaced: the new name of a folder that is `target` now; the caller is to discard it.
        journal: of the conversion.
        overwrite: whether there may be such a folder.

    Raises:
        NumpyBloomError: there is one, and there may not be.
        OSError: renaming fails, and all names are as they were; or, with the new names in place,
            they cannot be synchronized.
    """
    discard(replaced, journal)  # of a conversion that was cut off
    if target.exists() and not overwrite:
        raise NumpyBloomError(f"{target} has come into being meanwhile; it is kept")
    try:
        if target.exists():
            target.rename(replaced)
        folder.rename(target)
    except BaseException:
        if not target.exists() and replaced.exists():
            replaced.rename(target)
        raise
    sync_folder(target.parent)


def check_apart(source: Path, target: Path) -> None:
    """See that a source is none of the folders that conversion fills and removes beside a target.

    Raises:
        NumpyBloomError: it is, or lies within one.
    """
    for suffix in ("", PARTIAL, REPLACED):
        place = beside(target, suffix)
        if source.resolve().is_relative_to(place):
            within = "is" if source.resolve() == place else "lies within"
            raise NumpyBloomError(
                f"the source {source} {within} {place}, which a conversion to {target} replaces; "
                "choose another target"
            )


def beside(target: Path, suffix: str) -> Path:
    """A path of the conversion's own next to the target."""
    target = target.resolve()
    return target.with_name(target.name + suffix)


def discard(folder: Path, journal: Path) -> None:
    """Remove a folder that a conversion left, if there is one. See `check_ours`."""
    if folder.exists():
        check_ours(folder, journal)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def check_ours(folder: Path, journal: Path) -> None:
    """See that a folder, if there is one, is what a conversion left: while there is anything in it,
    the conversion's journal lies beside it.

    Raises:
        NumpyBloomError: it is not.
    """
    files = any(folder.iterdir()) if folder.exists() else False
    foreign = _foreign(folder) if files else []
    if folder.is_symlink() or foreign or (files and not journal.is_file()):
        holds = f" and holds {foreign[0]}" if foreign else ""
        raise NumpyBloomError(
            f"{folder} is in the way{holds}; no conversion left it: move it, or choose another "
            "target"
        )


def _foreign(folder: Path) -> list[str]:
    """Names of what is in a folder and cannot be of a conversion."""
    suffixes = (ARRAYS_SUFFIX, ".json")
    return [
        file.name
        for file in folder.iterdir()
        if not (file.is_file() or file.is_symlink())
        or not file.name.removesuffix(UNFINISHED).endswith(suffixes)
    ]
