"""Writing a converted folder: aside, and under its name only when all of it is on disk."""

import fcntl
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from conversion.direct import DirectWriter, Written
from conversion.journal import Entry, Journal, Origin, is_whole
from conversion.target import PARTIAL, REPLACED, beside, check_ours, discard, name_folder
from numpy_bloom.durable import UNFINISHED, give_name, put, sync_folder
from numpy_bloom.errors import NumpyBloomError, failing_as
from numpy_bloom.weights.dtypes import Stored
from numpy_bloom.weights.manifest import FORMAT_VERSION, MANIFEST
from numpy_bloom.weights.safetensors_file import Spec, header_bytes

FILES_AHEAD = 2
"""How many files may be on their way to the disk when another one is."""


class FolderWriter:
    """Builds the folder `TARGET.partial`, which becomes TARGET in the end.

    When the `with` block fails, complete files stay, for the next run to go on from. While a file
    is on its way to the disk the next one may be written.

    Args:
        target: the folder to be.
        overwrite: whether a folder that stands there already is replaced at the end.
        tell: is given a line on how to go on after a failure.

    Attributes:
        folder: where the files are meanwhile.
    """

    def __init__(
        self,
        target: Path,
        *,
        overwrite: bool,
        tell: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._target = target.resolve()  # a link stays a link, `.` has a name
        self._tell = tell
        self.folder = beside(self._target, PARTIAL)
        self._replaced = beside(self._target, REPLACED)
        self._overwrite = overwrite
        self._journal = Journal(beside(self._target, ".partial.json"))
        self._begun = False
        self._copied: dict[str, Entry] = {}
        self._unread: list[str] = []
        self._writer, self._syncer = DirectWriter(), ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> "FolderWriter":
        with failing_as(f"cannot write {self.folder}"):
            check_ours(self._replaced, self._journal.path)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.folder, os.O_RDONLY)
            try:
                self._claim()
                check_ours(self.folder, self._journal.path)
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
            mine = os.path.samestat(os.fstat(self._handle), self.folder.stat())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            raise NumpyBloomError(f"another conversion is writing {self.folder}; wait for it")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()
        self._syncer.shutdown()
        if kind is not None and self._begun and not self.complete:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._journal.remove()
        elif kind is not None and self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()
        os.close(self._handle)
        if kind is not None and self.complete and self.folder.exists():
            self._tell(
                f"{len(self.complete)} files are complete in {self.folder}; "
                "the same command goes on from there"
            )

    @property
    def complete(self) -> list[str]:
        """The array files that are written, or not needed; without that which is on its way."""
        return list(self._journal.files)

    def resume(self, origin: Origin) -> None:
        """Find out what an earlier run of the same conversion has completed; change nothing.

        Args:
            origin: what is converted, and how.

        Raises:
            NumpyBloomError: it has complete files of a run with other options or another source.
        """
        others = [name for name in self._journal.read(origin) if (self.folder / name).exists()]
        if others:
            raise NumpyBloomError(
                f"{self.folder} holds {len(others)} complete files of a run with other options or "
                "another source, perhaps their only copy; repeat that run to finish it, or remove "
                "the folder"
            )
        entries = self._journal.files
        total = sum(int(entry["size"]) for entry in entries.values() if entry)
        with tqdm(
            total=total, unit="B", unit_scale=True, disable=None, desc="checking"
        ) as progress:
            for name, entry in list(entries.items()):
                if entry and not is_whole(self.folder / name, entry, progress.update):
                    del entries[name]

    def begin(self) -> None:
        """Remove all that is not complete: from here on files are written."""
        with failing_as(f"cannot write {self.folder}"):
            self._begun = True
            for file in self.folder.iterdir():
                if not self._journal.files.get(file.name):
                    file.unlink()
        self._journal.write()

    def write_arrays(
        self,
        name: str,
        arrays: Mapping[str, Spec],
        values: Iterable[Stored],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write a safetensors file.

        Args:
            name: of the file.
            arrays: name: (dtype, shape), in the order in which they are to lie.
            values: all numbers of all arrays in that order, in pieces of any size.
            metadata: of the header.
        """
        unfinished = self.folder / (name + UNFINISHED)
        with failing_as(f"cannot write {self.folder / name}"):
            try:
                pieces = _pieces(header_bytes(arrays, metadata), values)
                written = self._writer.write(unfinished, pieces)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
            self._pending.append(self._syncer.submit(self._complete, name, written))
        while len(self._pending) > FILES_AHEAD:
            self._pending.popleft().result()

    def _complete(self, name: str, written: Written) -> None:
        """Have a file and its name on disk, then a note of it."""
        path = self.folder / name
        with failing_as(f"cannot write {path}"):
            try:
                wait(written.writes)  # whatever comes of one: they use the handle
                for write in written.writes:
                    write.result()
                give_name(written.handle, path.with_name(name + UNFINISHED), path)
            finally:
                os.close(written.handle)
        self._journal.add(name, {"size": written.size, "sha256": written.sha256.result()})
        self._unread.append(name)

    def settle(self) -> None:
        """Wait until all files written so far are complete."""
        while self._pending:
            self._pending.popleft().result()

    def skip(self, name: str) -> None:
        """Note that a file is not needed."""
        self.settle()
        self._journal.add(name, None)

    def read_back(self) -> None:
        """Compare what is on disk with what was written, for files where that is still to be done.

        Raises:
            NumpyBloomError: the disk gives back something else.
        """
        self.settle()
        while self._unread:
            name = self._unread.pop()
            entry = self._journal.files[name]
            if entry and not is_whole(self.folder / name, entry):
                self._journal.files.pop(name)
                self._journal.write()
                raise NumpyBloomError(
                    f"{self.folder / name} is not what was written; check the disk. "
                    "Nothing of its source was deleted"
                )

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a small file as it is."""
        put(self.folder / name, content)
        self._copied[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    @property
    def entries(self) -> dict[str, Entry | None]:
        """Size and SHA-256 of all files that are written; None for one that is not needed."""
        return self._journal.files | self._copied

    def finish(self, files: Iterable[str], *, source: str, dtype: str, head_dtype: str) -> None:
        """Write the manifest, last of all, and give the folder its name.

        Args:
            files: all that were written, in the order in which they are to be listed.
            source: what was converted, a hub name or a folder's name.
            dtype: of the blocks' matrices.
            head_dtype: of the word embeddings and the head.
        """
        self.settle()
        entries = self.entries
        manifest = {
            "format_version": FORMAT_VERSION,
            "source": source,
            "dtype": dtype,
            "head_dtype": head_dtype,
            "files": {name: entries[name] for name in files if entries.get(name)},
        }
        put(self.folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        self.publish()

    def publish(self) -> None:
        """Give the folder its name: all that it is to hold is complete."""
        with failing_as(f"cannot write {self._target}"):
            journal = self._journal.path
            name_folder(
                self.folder, self._target, self._replaced, journal, overwrite=self._overwrite
            )
            discard(self._replaced, journal)
        self._journal.remove()

    def move_into_target(self, names: Iterable[str]) -> None:
        """Replace files of a folder that is there already; what is left of ours goes."""
        with failing_as(f"cannot write {self._target}"):
            for name in names:
                (self.folder / name).replace(self._target / name)
            sync_folder(self._target)
            discard(self.folder, self._journal.path)
        self._journal.files.clear()
        self._journal.remove()

    def abandon(self) -> None:
        """Let no later run go on from the files that are complete."""
        self._journal.files.clear()


def _pieces(beginning: bytes, values: Iterable[Stored]) -> Iterator[memoryview]:
    yield memoryview(beginning)
    for piece in values:
        yield piece.reshape(-1).view("u1").data
