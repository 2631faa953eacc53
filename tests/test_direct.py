"""Files that are written past the page cache: every byte, whatever pieces they come in."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.conversions import failing

from conversion import direct
from conversion.direct import DirectWriter, Written

pytestmark = pytest.mark.usefixtures("past_the_page_cache")

BUFFER = 4096
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Iterator[DirectWriter]:
    monkeypatch.setattr(direct, "BUFFER_BYTES", BUFFER)
    writer = DirectWriter()
    yield writer
    writer.close()


def content_of(nbytes: int) -> bytes:
    return np.random.default_rng(nbytes).bytes(nbytes)


def pieces(content: bytes, size: int) -> Iterator[memoryview]:
    """All in one array that is overwritten, as a piece is copied before the next one is made."""
    piece = np.empty(size, np.uint8)
    for begin in range(0, len(content), size):
        part = np.frombuffer(content[begin : begin + size], np.uint8)
        piece[: len(part)] = part
        yield piece[: len(part)].data


def ended(written: Written) -> tuple[int, str]:
    for write in written.writes:
        write.result()
    os.close(written.handle)
    return written.size, written.sha256.result()


@pytest.mark.parametrize("nbytes", [0, 1, BUFFER - 1, BUFFER, BUFFER + 1, 9 * BUFFER, 100_001])
@pytest.mark.parametrize("size", [7, 1000, BUFFER, 3 * BUFFER + 5])
def test_content_and_checksum(tmp_path: Path, writer: DirectWriter, nbytes: int, size: int) -> None:
    """Of two files, the second of which begins while the first is on its way."""
    contents = [content_of(nbytes), content_of(50_000)]
    written = [
        writer.write(tmp_path / str(number), pieces(content, size))
        for number, content in enumerate(contents)
    ]
    for number, (file, content) in enumerate(zip(written, contents, strict=True)):
        assert ended(file) == (len(content), hashlib.sha256(content).hexdigest())
        assert (tmp_path / str(number)).read_bytes() == content


def test_a_file_system_that_knows_nothing_of_it(
    tmp_path: Path, writer: DirectWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def plain_open(path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & direct.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", plain_open)
    content = content_of(3 * BUFFER + 1)
    ended(writer.write(tmp_path / "file", pieces(content, 1000)))
    assert (tmp_path / "file").read_bytes() == content


def test_a_file_system_that_opens_for_direct_writes_but_refuses_them(
    tmp_path: Path, writer: DirectWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = os.write, []

    def refusing(handle: int, content: memoryview) -> int:
        if is_direct(handle):
            refused.append(content)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(handle, content)

    monkeypatch.setattr(os, "write", refusing)
    content = content_of(3 * BUFFER + 1)
    written = writer.write(tmp_path / "file", pieces(content, 1000))
    assert ended(written)[0] == len(content)
    assert len(refused) == can_be_direct(tmp_path)
    assert (tmp_path / "file").read_bytes() == content


def test_whole_pages_go_past_the_page_cache(tmp_path: Path, writer: DirectWriter) -> None:
    for rest in (0, 1):
        written = writer.write(tmp_path / "file", pieces(content_of(3 * BUFFER + rest), 1000))
        for write in written.writes:
            write.result()
        assert is_direct(written.handle) == (can_be_direct(tmp_path) and not rest)
        os.close(written.handle)


def is_direct(handle: int) -> bool:
    return bool(fcntl.fcntl(handle, fcntl.F_GETFL) & direct.O_DIRECT)


def can_be_direct(folder: Path) -> bool:
    """Whether platform and file system open files past the page cache."""
    try:
        handle = os.open(folder / "other", os.O_WRONLY | os.O_CREAT | direct.O_DIRECT)
    except OSError:
        return False
    try:
        return is_direct(handle)
    finally:
        os.close(handle)


@pytest.mark.parametrize("call", [1, 3, 10])
def test_a_failed_write_ends_it_soon(
    tmp_path: Path, writer: DirectWriter, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """A few buffers later, with the file closed; and the next file is whole."""
    monkeypatch.setattr(os, "write", failing(os.write, call, FULL))
    given = 0

    def counted() -> Iterator[memoryview]:
        nonlocal given
        for piece in pieces(content_of(40 * BUFFER), BUFFER):
            given += 1
            yield piece

    handles = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match=str(FULL.strerror)):
        writer.write(tmp_path / "file", counted())
    assert given <= call + direct.BUFFERS + 1
    assert len(list(Path("/proc/self/fd").iterdir())) == handles
    monkeypatch.undo()
    content = content_of(3 * BUFFER)
    ended(writer.write(tmp_path / "next", pieces(content, 1000)))
    assert (tmp_path / "next").read_bytes() == content


def test_the_last_write_fails(
    tmp_path: Path, writer: DirectWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which nobody has waited for yet."""
    monkeypatch.setattr(os, "write", failing(os.write, 2, FULL))
    written = writer.write(tmp_path / "file", pieces(content_of(BUFFER + 1), BUFFER))
    with pytest.raises(OSError, match=str(FULL.strerror)):
        written.writes[-1].result()
    os.close(written.handle)
