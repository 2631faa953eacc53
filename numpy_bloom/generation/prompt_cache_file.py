"""A prompt cache's file: opened, begun beside another one, and filled after every pass.

Keys and values are on disk before the record of the token that a pass made of them is written. So
at any moment the records up to the last one with which a pass ended are the text, and what lies
beyond does not count. Such a text goes on exactly as it would have. A record is never torn: its 32
bytes are aligned, so they are in one page of memory and one sector of a disk.
"""

import fcntl
import json
import os
import stat
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from numpy_bloom.durable import give_name
from numpy_bloom.errors import NumpyBloomError, failing_as
from numpy_bloom.generation.prompt_cache_layout import (
    CONTENT,
    RECORD,
    DamagedError,
    Layout,
    checksum_of,
    is_ours,
    read_header,
    read_whole,
)
from numpy_bloom.running.runner import SequenceCache

READ_BYTES = 4096 * RECORD.size
"""Records are read so many bytes at a time."""


class PromptCacheFile:
    """A file of one text, open and locked until it is closed or nobody holds it any more.

    Attributes:
        path: its name, or the name it is to have.
        about: what it says of the text; JSON values.
        ids, logprobs: of the tokens that it held when it was opened.
        guesses: that were to follow.
    """

    def __init__(self, path: Path, handle: int, layout: Layout, about: dict[str, Any]) -> None:
        self.path = path
        self.about = about
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.guesses = 0
        self.close = weakref.finalize(self, os.close, handle)
        self._handle = handle
        self._layout = layout
        self._checks: list[int] = []  # of the records that are written
        self._cached = 0  # tokens whose keys and values are written

    @classmethod
    def open(cls, path: Path, *, write: bool, ignore_damaged: bool) -> "PromptCacheFile":
        """Open a file and read its tokens.

        Args:
            path: its name.
            write: whether the text is to go on in it.
            ignore_damaged: end the text where it is damaged.

        Raises:
            DamagedError: its header is damaged, or it ends early, or its tokens are damaged.
            NumpyBloomError: it cannot be read, is something else, or another run has it.
        """
        with failing_as(f"cannot read {path}"):
            if not stat.S_ISREG(path.stat().st_mode):
                raise NumpyBloomError(f"{path} is no file; choose another name")
            handle = os.open(path, os.O_RDWR if write else os.O_RDONLY)
            try:
                _lock(handle, path, fcntl.LOCK_EX if write else fcntl.LOCK_SH)
                layout, about = read_header(handle, path)
                file = cls(path, handle, layout, about)
            except BaseException:
                os.close(handle)
                raise
            file._read_tokens(ignore_damaged=ignore_damaged)
        return file

    @classmethod
    def create(
        cls, path: Path, about: dict[str, Any], tokens: int, cache: SequenceCache
    ) -> "PromptCacheFile":
        """Begin a file beside the one that it is to replace; see `publish`.

        Args:
            path: the name that it is to have.
            about: what the text is; JSON values.
            tokens: S.
            cache: of the text.

        Raises:
            NumpyBloomError: it cannot be written, or another run writes it.
        """
        partial = _partial(path)
        with failing_as(f"cannot write {partial}"):
            handle = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
            layout = Layout.of(_json(about), tokens, cache.token_shape)
            file = cls(path, handle, layout, about)
            _lock(handle, partial, fcntl.LOCK_EX)
            if os.fstat(handle).st_size and not is_ours(handle):  # not of a run that was cut off
                raise NumpyBloomError(f"{partial} is in the way; move it, or choose another file")
            try:
                os.ftruncate(handle, 0)
                file._write(layout.header, 0)
                os.ftruncate(handle, layout.nbytes)
            except BaseException:
                file.discard()
                raise
        return file

    def publish(self) -> None:
        """Give the file its name. What had it is gone.

        Raises:
            NumpyBloomError: that is not possible.
        """
        with failing_as(f"cannot write {self.path}"):
            give_name(self._handle, _partial(self.path), self.path)

    def load(self, cache: SequenceCache, tokens: int, *, ignore_damaged: bool) -> None:
        """Read keys and values of the first tokens.

        Args:
            cache: takes them in; its length tells how many.
            tokens: how many are wanted.
            ignore_damaged: come to an end before the first that are damaged.

        Raises:
            DamagedError: some are damaged.
        """
        if self._layout.slab != cache.token_shape:
            raise DamagedError(self.path, f"keys and values have shape {self._layout.slab}")
        cache.length = 0
        slab = np.empty(cache.token_shape, dtype="<f4")
        try:
            for place in range(tokens):
                self._read(slab, self._layout.slab_at(place))
                checksum = bytearray(8)
                self._read(checksum, self._layout.checksum_at(place))
                if int.from_bytes(checksum, "little") != checksum_of(slab, self._checks[place]):
                    raise DamagedError(self.path, f"keys and values of token {place} are wrong")
                cache.put(place, slab)
                cache.length = place + 1
        except DamagedError:
            if not ignore_damaged:
                raise
        self._cached = cache.length

    def save(
        self, cache: SequenceCache, ids: Sequence[int], logprobs: Sequence[float], guesses: int
    ) -> None:
        """Write what has come since the last time. If it fails, it can be repeated.

        Args:
            cache: the keys and values of the text.
            ids: of the whole text.
            logprobs: of each.
            guesses: that may be made in the next pass.

        Raises:
            OSError: the disk is full, or it fails.
        """
        known, checks, records = len(self._checks), list(self._checks), bytearray()
        for place in range(known, len(ids)):
            ended = 1 + guesses if place == len(ids) - 1 else 0
            content = CONTENT.pack(ids[place], logprobs[place], ended)
            checks.append(checksum_of(content, checks[-1] if checks else self._header_check))
            records += content + checks[-1].to_bytes(8, "little")
        checksums = bytearray()
        for place in range(self._cached, cache.length):
            slab = cache.token(place)
            self._write(slab, self._layout.slab_at(place))
            checksums += checksum_of(slab, checks[place]).to_bytes(8, "little")
        self._write(checksums, self._layout.checksum_at(self._cached))
        os.fsync(self._handle)
        self._write(records, self._layout.record_at(known))
        self._checks, self._cached = checks, cache.length

    def cut(self) -> None:
        """Clear the records beyond the text, of a pass that was cut off."""
        known, end = len(self._checks), self._layout.tokens
        with failing_as(f"cannot write {self.path}"):
            for place in range(known, end, READ_BYTES // RECORD.size):
                start, stop = self._layout.record_at(place), self._layout.record_at(end)
                self._write(bytes(min(READ_BYTES, stop - start)), start)

    def check_name(self) -> None:
        """See that it still has its name.

        Raises:
            NumpyBloomError: it was removed, or another run has written one in its place.
        """
        if not _is_named(self._handle, self.path):
            raise NumpyBloomError(
                f"{self.path} was removed, or replaced by another run; choose another file for one "
                "of them"
            )

    def sync(self) -> None:
        """See that all of it is on disk."""
        with failing_as(f"cannot write {self.path}"):
            os.fsync(self._handle)

    def discard(self) -> None:
        """Remove a file that was not published."""
        _partial(self.path).unlink(missing_ok=True)
        self.close()

    @property
    def _header_check(self) -> int:
        return checksum_of(self._layout.header, 0)

    def _read_tokens(self, *, ignore_damaged: bool) -> None:
        """Read the text up to the last end of a pass."""
        ids: list[int] = []
        logprobs: list[float] = []
        checks: list[int] = []
        check, whole = self._header_check, 0
        for record in self._records():
            token_id, logprob, ended, checksum = RECORD.unpack(record)
            if not any(record):
                break
            check = checksum_of(record[: CONTENT.size], check)
            if checksum != check:
                if ids and not ignore_damaged:
                    raise DamagedError(self.path, f"token {len(ids)} is wrong")
                break
            ids.append(token_id)
            logprobs.append(logprob)
            checks.append(check)
            if ended:
                whole, self.guesses = len(ids), ended - 1
        if not ids:  # the header may be wrong as well
            raise DamagedError(self.path, "its header or its first token is wrong")
        self.ids, self.logprobs, self._checks = ids[:whole], logprobs[:whole], checks[:whole]

    def _records(self) -> Iterator[bytes]:
        start, end = self._layout.record_at(0), self._layout.record_at(self._layout.tokens)
        for offset in range(start, end, READ_BYTES):
            part = bytearray(min(READ_BYTES, end - offset))
            self._read(part, offset)
            for place in range(0, len(part), RECORD.size):
                yield bytes(part[place : place + RECORD.size])

    def _read(self, buffer: Any, offset: int) -> None:
        read_whole(self._handle, self.path, buffer, offset)

    def _write(self, content: Any, offset: int) -> None:
        rest = memoryview(content).cast("B")
        while rest:
            written = os.pwrite(self._handle, rest, offset)
            rest, offset = rest[written:], offset + written


def _lock(handle: int, path: Path, kind: int) -> None:
    """Claim a file for this process, and see that it still has its name.

    Within the process nobody is kept out: a run that was interrupted may be held by its traceback.
    """
    try:
        fcntl.lockf(handle, kind | fcntl.LOCK_NB)
        ours = _is_named(handle, path)
    except (BlockingIOError, PermissionError):
        ours = False
    if not ours:
        raise NumpyBloomError(
            f"{path} is in use by another process; wait for it, or choose another file"
        )


def _is_named(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _json(about: Mapping[str, Any]) -> str:
    return json.dumps(about, default=lambda number: number.item())  # NumPy's
