"""Writing a converted folder: aside, and under its name only when all of it is on disk."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.dtypes import Stored
from numpy_bloom.weights.folder import FORMAT_VERSION, MANIFEST
from numpy_bloom.weights.safetensors_file import Spec, header_bytes

Entry = dict[str, int | str]


class FolderWriter:
    """Builds the folder `TARGET.partial`, which becomes TARGET when the `with` block succeeds.

    Args:
        target: the folder to be.
        overwrite: whether a converted model may stand there already; it is replaced at the end.

    Raises:
        NumpyBloomError: TARGET exists and must not be replaced, or cannot be written.
    """

    def __init__(self, target: Path, *, overwrite: bool) -> None:
        if target.exists():
            if not (target / MANIFEST).is_file():
                raise NumpyBloomError(
                    f"{target} exists and is no converted model; choose another target"
                )
            if not overwrite:
                raise NumpyBloomError(
                    f"{target} exists; give --overwrite to replace it, or another target"
                )
        self._target = target.resolve()  # a link stays a link, `.` has a name
        self._partial = self._beside(".partial")
        self._replaced = self._beside(".replaced")
        self._overwrite = overwrite
        self._files: dict[str, Entry] = {}

    def __enter__(self) -> "FolderWriter":
        with _told(self._partial):
            _check_ours(self._replaced)
            self._partial.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._partial, os.O_RDONLY)
            try:
                self._claim()
                _empty(self._partial)  # of a conversion that was cut off
            except BaseException:
                os.close(self._handle)
                raise
        return self

    def _claim(self) -> None:
        """Lock the partial folder, and see that it still has its name.

        Raises:
            NumpyBloomError: another process has it.
        """
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(self._handle), self._partial.stat())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            raise NumpyBloomError(f"another conversion is writing {self._partial}; wait for it")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            shutil.rmtree(self._partial, ignore_errors=True)
        os.close(self._handle)

    def _beside(self, suffix: str) -> Path:
        return self._target.with_name(self._target.name + suffix)

    def write_arrays(
        self,
        name: str,
        arrays: Mapping[str, Spec],
        values: Iterable[Stored],
    ) -> None:
        """Write a safetensors file.

        Args:
            name: of the file.
            arrays: name: (dtype, shape), in the order in which they are to lie.
            values: all numbers of all arrays in that order, in pieces of any size.
        """
        self._write(name, [header_bytes(arrays)], values)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file as it is."""
        self._write(name, [content], [])

    def _write(self, name: str, beginning: Iterable[bytes], values: Iterable[Stored]) -> None:
        checksum = hashlib.sha256()
        with _told(self._partial / name), (self._partial / name).open("wb") as file:
            for piece in _buffers(beginning, values):
                file.write(piece)
                checksum.update(piece)
            file.flush()
            os.fsync(file.fileno())
            self._files[name] = {"size": file.tell(), "sha256": checksum.hexdigest()}

    def finish(self, *, source: str, dtype: str, head_dtype: str) -> None:
        """Write the manifest, last of all, and give the folder its name.

        Args:
            source: what was converted, a hub name or a folder's name.
            dtype: of the blocks' matrices.
            head_dtype: of the word embeddings and the head.
        """
        manifest = {
            "format_version": FORMAT_VERSION,
            "source": source,
            "dtype": dtype,
            "head_dtype": head_dtype,
            "files": dict(self._files),
        }
        self.write_bytes(MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        with _told(self._target):
            _sync_folder(self._partial)
            _discard(self._replaced)  # of a conversion that was cut off
            if self._target.exists() and not self._overwrite:
                raise NumpyBloomError(f"{self._target} has come into being meanwhile; it is kept")
            try:
                if self._target.exists():
                    self._target.rename(self._replaced)
                self._partial.rename(self._target)
            except BaseException:
                if not self._target.exists() and self._replaced.exists():
                    self._replaced.rename(self._target)
                raise
            _sync_folder(self._target.parent)
        _discard(self._replaced)


def _discard(folder: Path) -> None:
    """Remove a folder that a conversion left, if there is one."""
    if folder.exists():
        _empty(folder)
        folder.rmdir()


def _empty(folder: Path) -> None:
    """Remove the files that a conversion left in a folder."""
    _check_ours(folder)
    for file in folder.iterdir():
        file.unlink()


def _check_ours(folder: Path) -> None:
    """See that a folder, if there is one, holds only what conversions write.

    Raises:
        NumpyBloomError: it does not.
    """
    names = [file.name for file in folder.iterdir()] if folder.exists() else []
    foreign = [name for name in names if not name.endswith((".safetensors", ".json"))]
    if foreign:
        raise NumpyBloomError(
            f"{folder} is in the way and holds {foreign[0]}, which no conversion writes; "
            "move it, or choose another target"
        )


def _buffers(beginning: Iterable[bytes], values: Iterable[Stored]) -> Iterator[memoryview]:
    for content in beginning:
        yield memoryview(content)
    for piece in values:
        yield piece.reshape(-1).view("u1").data


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn a failed write (no permission, a full disk) into one clear line."""
    try:
        yield
    except OSError as error:
        raise NumpyBloomError(f"cannot write {path}: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk too, where the platform can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
