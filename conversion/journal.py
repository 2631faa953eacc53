"""What is complete of a conversion that may be cut off at any moment."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy_bloom.durable import put, sha256
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.bounded import read_json
from numpy_bloom.weights.folder import LM_HEAD
from numpy_bloom.weights.manifest import entry_fault

Entry = dict[str, int | str]
"""Size and SHA-256 of a file."""

Origin = dict[str, Any]
"""What is converted and how: `options`, and of each of the source's `files` what changes with its
content."""


class Journal:
    """A small JSON file beside the folder that is being filled.

    Its content is replaced as a whole, so it is never torn. It lies outside of the folder, which so
    needs no last change between being complete and getting its name.

    Attributes:
        path: of the file.
        files: the complete ones by name; None for one that turned out not to be needed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._origin: Origin = {}
        self.files: dict[str, Entry | None] = {}

    def read(self, origin: Origin) -> list[str]:
        """Take over what an earlier run of the same conversion noted; else there are no files.

        Files of the source that are gone may have been deleted on purpose; all others must be as
        they were.

        Returns:
            Names of files that are complete of another conversion, which nothing was taken of.

        Raises:
            NumpyBloomError: there is a file under the journal's name that is none.
        """
        self._origin = origin
        if not self.path.exists():
            return []
        found = read_json(self.path)
        if not _is_journal(found):
            raise NumpyBloomError(
                f"{self.path} is in the way and no conversion wrote it; "
                "move it, or choose another target"
            )
        before = found["origin"]
        if before["options"] == origin["options"] and all(
            before["files"].get(name) == identity for name, identity in origin["files"].items()
        ):
            self._origin, self.files = before, found["files"]
            return []
        return [name for name, entry in found["files"].items() if entry]

    def write(self) -> None:
        """Have all this on disk."""
        content = {"origin": self._origin, "files": self.files}
        put(self.path, json.dumps(content).encode())

    def add(self, name: str, entry: Entry | None) -> None:
        """Note that a file is complete and on disk, or is not needed."""
        self.files[name] = entry
        self.write()

    def remove(self) -> None:
        """There is nothing to go on from any more."""
        self.path.unlink(missing_ok=True)


def _is_journal(found: dict[str, Any]) -> bool:
    """Whether a parsed file is what a journal writes."""
    origin, files = found.get("origin"), found.get("files")
    return (
        isinstance(origin, dict)
        and origin.keys() == {"options", "files"}
        and isinstance(origin["files"], dict)
        and isinstance(files, dict)
        and all(
            name == LM_HEAD if entry is None else entry_fault(name, entry) is None
            for name, entry in files.items()
        )
    )


def is_whole(
    path: Path, entry: Entry, progress: Callable[[int], object] = lambda _bytes: None
) -> bool:
    """Whether a file is on disk as it was written."""
    try:
        return path.stat().st_size == entry["size"] and sha256(path, progress) == entry["sha256"]
    except OSError:
        return False
