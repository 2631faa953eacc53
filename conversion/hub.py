"""A checkpoint on the Hugging Face hub, fetched file by file when it is needed."""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from conversion.shards import INDEX_SUFFIX
from conversion.source import COPIED
from numpy_bloom.durable import PIECE_BYTES, sha256
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.tokenizer import MOST_TOKENIZER_BYTES, TOKENIZER
from numpy_bloom.weights.bounded import MOST_JSON_BYTES

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
ATTEMPTS = 3
"""At a download that breaks off; the hub's library itself resumes it several times in each."""


class HubSource:
    """A model on the hub; `folder` holds what is there of it.

    Raises:
        NumpyBloomError: there is no such model or no way to it, something else is in the way, or a
            small file is none.
    """

    def __init__(self, name: str, folder: Path, *, drops: bool) -> None:
        # Imported here, since it takes longer than all the rest and local folders do not need it.
        from huggingface_hub import HfApi, hf_hub_download  # noqa: PLC0415

        self.name = name
        self.folder = folder
        self.drops = drops
        self._download = hf_hub_download
        try:
            info = HfApi().model_info(name, files_metadata=True)
        except Exception as error:  # of the hub's library, of its HTTP client, of the system
            raise NumpyBloomError(
                f"there is no folder {name}, and it cannot be had from the hub: {_line(error)}"
            ) from error
        self._commit = info.sha
        self._files: dict[str, Any] = {file.rfilename: file for file in info.siblings or []}
        self.sizes: dict[str, int] = {file: entry.size or 0 for file, entry in self._files.items()}
        self._own = folder / ".cache" / "huggingface"  # the library's notes, unfinished downloads
        if folder.exists() and any(folder.iterdir()) and not self._own.exists():
            raise NumpyBloomError(
                f"{folder} is in the way, where the files of {name} would be downloaded; "
                "move it, or choose another target"
            )
        for unfinished in self._own.rglob("*.incomplete"):
            unfinished.unlink()  # of a run that was cut off; never taken up again
        for file, size in self.sizes.items():
            if file in COPIED or (file.endswith(INDEX_SUFFIX) and "/" not in file):
                most = MOST_TOKENIZER_BYTES if file == TOKENIZER else MOST_JSON_BYTES
                if size > most:
                    raise NumpyBloomError(
                        f"{file} of {name} has {size:,} bytes, expected at most {most:,}"
                    )
                self.fetch(file)

    def identity(self, name: str) -> object:
        """The hub's checksum of a file."""
        entry = self._files[name]
        return entry.lfs.sha256 if entry.lfs else entry.blob_id

    def comes_later(self, name: str) -> bool:
        """Whether a file is still to be fetched."""
        return not (self.folder / name).exists()

    def fetch(self, name: str) -> None:
        """Download a file, unless it is there, and compare it with the hub's checksum.

        Raises:
            NumpyBloomError: it cannot be had, or is another; what came is deleted then.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._download(self.name, name, revision=self._commit, local_dir=self.folder)
                break
            except Exception as error:
                if attempt == ATTEMPTS:
                    raise NumpyBloomError(
                        f"cannot download {name} of {self.name}: {_line(error)}; "
                        "the same command goes on from here"
                    ) from error
        if self._checksum(name) != self.identity(name):
            self.drop(name)
            raise NumpyBloomError(
                f"{name} of {self.name} has another checksum than the hub names; "
                "the same command downloads it again"
            )

    def _checksum(self, name: str) -> str:
        """SHA-256 of a large file, git's name of a small one, as the hub has them."""
        path = self.folder / name
        if self._files[name].lfs:
            return sha256(path)
        checksum = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                checksum.update(piece)
        return checksum.hexdigest()

    def drop(self, name: str) -> None:
        """Remove a file."""
        (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the folder with all that is left in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _line(error: Exception) -> str:
    return str(error).split("\n", maxsplit=1)[0] or type(error).__name__
