"""Writing single files of a converted model again: those that are gone or damaged."""

from pathlib import Path

from tqdm import tqdm

from conversion.journal import is_whole
from conversion.writer import FolderWriter
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.manifest import MANIFEST, read_manifest, size_fault


class Repair:
    """What a conversion has to do where a model is not whole any more.

    Which checkpoint it was made of, and how, its manifest need not tell: of another one, or with
    other options, files would come out with other checksums than it lists.

    Args:
        target: a converted model.

    Raises:
        NumpyBloomError: all files are there with their sizes, so that it could only be replaced;
            or the manifest is damaged.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._entries = read_manifest(target)["files"]
        if not any(size_fault(target / name, e["size"]) for name, e in self._entries.items()):
            raise NumpyBloomError(
                f"{target} exists; give --overwrite to replace it, or another target"
            )
        self.damaged: set[str] = set()

    def check(self) -> None:
        """Find all damaged files, by their checksums."""
        total = sum(entry["size"] for entry in self._entries.values())
        with tqdm(
            total=total, unit="B", unit_scale=True, disable=None, desc="checking"
        ) as progress:
            self.damaged = {
                name
                for name, entry in self._entries.items()
                if not is_whole(self._target / name, entry, progress.update)
            }

    def finish(self, writer: FolderWriter, source: str) -> None:
        """Put what was written again in its place.

        Args:
            writer: has written all damaged files that the source has.
            source: the source's name.

        Raises:
            NumpyBloomError: a file is not what it was; nothing is put anywhere then.
        """
        for name in sorted(self.damaged):
            if writer.entries.get(name) != self._entries[name]:
                writer.abandon()
                raise NumpyBloomError(
                    f"{name} does not come out of {source} with the checksum that "
                    f"{self._target / MANIFEST} lists; give the SOURCE and options that "
                    f"{self._target} was made with, or --overwrite to replace it. It is unchanged"
                )
        writer.move_into_target(sorted(self.damaged))
