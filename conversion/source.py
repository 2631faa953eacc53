"""Where a checkpoint comes from: what a conversion asks of it, and a local folder that answers."""

from pathlib import Path
from typing import Protocol

from conversion.checkpoint import names_in
from numpy_bloom.errors import NumpyBloomError

COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
"""Files that are taken over as they are. Only the first is indispensable."""


class Source(Protocol):
    """A checkpoint whose shards come and go.

    Attributes:
        name: what the manifest calls it.
        folder: where its files are once they are fetched; all but the shards are from the start.
        sizes: of all its files, by name, wherever they are.
        drops: whether a shard is removed from `folder` when it is not needed any more.
    """

    name: str
    folder: Path
    sizes: dict[str, int]
    drops: bool

    def identity(self, name: str) -> object:
        """What changes, most likely, with the content of a file of `sizes`; JSON can hold it."""

    def comes_later(self, name: str) -> bool:
        """Whether a shard is only there once it is fetched."""

    def fetch(self, name: str) -> None:
        """See that a shard is in `folder`, if it can be had."""

    def drop(self, name: str) -> None:
        """Remove a shard from `folder`, if it is there."""

    def close(self) -> None:
        """All is converted."""


class LocalSource:
    """A folder. Its shards stay, unless they are to be deleted.

    Raises:
        NumpyBloomError: it cannot be read, or a link is to be deleted.
    """

    def __init__(self, folder: Path, *, drops: bool) -> None:
        self.name = folder.resolve().name
        self.folder = folder
        self.drops = drops
        self.sizes = {
            name: (folder / name).stat().st_size
            for name in names_in(folder)
            if (folder / name).is_file()
        }
        links = [name for name in self.sizes if drops and (folder / name).is_symlink()]
        if links:
            raise NumpyBloomError(
                f"{folder / links[0]} is a link; expected a file that can be deleted. Name the "
                "folder that it points to, or do without --delete-source"
            )

    def identity(self, name: str) -> object:
        """Size and time of the last change."""
        return [self.sizes[name], (self.folder / name).stat().st_mtime_ns]

    def comes_later(self, _name: str) -> bool:
        """No: what is not there is missing."""
        return False

    def fetch(self, name: str) -> None:
        """It is there or it is missing."""

    def drop(self, name: str) -> None:
        """Delete a file.

        Raises:
            NumpyBloomError: it cannot be deleted.
        """
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise NumpyBloomError(f"cannot delete {self.folder / name}: {error}") from error

    def close(self) -> None:
        """The folder stays, with all that is no shard."""
