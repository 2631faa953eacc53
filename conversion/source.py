"""Where a checkpoint comes from: what a conversion asks of it, and a local folder that answers."""

from contextlib import suppress
from pathlib import Path
from typing import Protocol

from conversion.shards import WEIGHTS
from numpy_bloom.errors import NumpyBloomError, failing_as
from numpy_bloom.model.config import CONFIG
from numpy_bloom.tokenizer import TOKENIZER

COPIED = (
    CONFIG,
    "generation_config.json",
    TOKENIZER,
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

    Links that are read may stay within it, or be those of the hub's cache; else a checkpoint could
    have any file of this machine copied, or read in place of its own.

    Raises:
        NumpyBloomError: it cannot be read, or a link that is read leads out of it or to nothing.
    """

    def __init__(self, folder: Path, *, drops: bool) -> None:
        self.name = folder.resolve().name
        self.folder = folder
        self.drops = drops
        for name in (*COPIED, *WEIGHTS):
            _check_link(folder / name)
        self.sizes = {}
        for name in _names_in(folder):
            with suppress(OSError):  # of a link to nothing, and of no interest
                if not (folder / name).is_dir():
                    self.sizes[name] = (folder / name).stat().st_size

    def identity(self, name: str) -> object:
        """Size and time of the last change."""
        return [self.sizes[name], (self.folder / name).stat().st_mtime_ns]

    def comes_later(self, _name: str) -> bool:
        """No: what is not there is missing."""
        return False

    def fetch(self, name: str) -> None:
        """It is there or it is missing.

        Raises:
            NumpyBloomError: it is a link that leads elsewhere, or that is to be deleted.
        """
        _check_link(self.folder / name)
        if self.drops and (self.folder / name).is_symlink():
            raise NumpyBloomError(
                f"{self.folder / name} is a link; expected a file that can be deleted. Name the "
                "folder that it points to, or do without --delete-source"
            )

    def drop(self, name: str) -> None:
        """Delete a file.

        Raises:
            NumpyBloomError: it cannot be deleted.
        """
        with failing_as(f"cannot delete {self.folder / name}"):
            (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """The folder stays, with all that is no shard."""


def _names_in(folder: Path) -> list[str]:
    """The names of what is in a folder.

    Raises:
        NumpyBloomError: it cannot be read.
    """
    with failing_as(f"cannot read the checkpoint's folder {folder}"):
        return [file.name for file in folder.iterdir()]


def _check_link(link: Path) -> None:
    """See that a file, if it is a link, stays within its folder.

    In the hub's cache, the files of `snapshots/<commit>` are links to `../../blobs/<checksum>`
    (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).

    Raises:
        NumpyBloomError: it does not, or leads to nothing.
    """
    if not link.is_symlink():
        return
    folder = link.parent.resolve()
    try:
        goal = link.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # the latter for loops, before Python 3.13
        raise NumpyBloomError(f"{link} is a link to nothing; download it again") from error
    cached = folder.parent.name == "snapshots" and goal.parent == folder.parent.parent / "blobs"
    if not cached and not goal.is_relative_to(folder):
        raise NumpyBloomError(
            f"{link} is a link out of the checkpoint's folder, to {goal}; expected a file. If you "
            "trust it, replace it by a copy"
        )
