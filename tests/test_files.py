"""Pieces of files, read past the page cache or not: the right bytes, or an error with the name."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.threads import open_files

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights import files
from numpy_bloom.weights.files import DirectFiles, page_buffer
from numpy_bloom.weights.safetensors_file import ALIGNMENT
from numpy_bloom.weights.team import Team

pytestmark = pytest.mark.usefixtures("past_the_page_cache")

SIZE = 7 * ALIGNMENT + 1234  # the last page is not whole
EDGES = [0, 1, 2, 3, ALIGNMENT - 1, ALIGNMENT, ALIGNMENT + 1, 2 * ALIGNMENT, 3 * ALIGNMENT - 2]
LENGTHS = [1, 2, ALIGNMENT - 1, ALIGNMENT, ALIGNMENT + 1, 2 * ALIGNMENT, 3 * ALIGNMENT + 7]


@pytest.fixture
def content() -> bytes:
    return np.random.default_rng(0).bytes(SIZE)


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "block_007.safetensors"
    path.write_bytes(content)
    return path


@pytest.fixture
def direct() -> Iterator[DirectFiles]:
    with closing(DirectFiles()) as direct:
        yield direct


def read(direct: DirectFiles, path: Path, offset: int, nbytes: int) -> bytes:
    return bytes(direct.read(path, offset, nbytes, page_buffer(nbytes)))


# --- ways to read ---------------------------------------------------------------------------------


def past_the_cache(_monkeypatch: pytest.MonkeyPatch) -> None:
    """As the platform has it."""


def without_o_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "O_DIRECT", 0)


def refused_o_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """The platform has it, the file system has not."""
    real = os.open

    def refusing(path: Path, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))
        return real(path, flags)

    monkeypatch.setattr(os, "open", refusing)


def in_short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read may give less than asked for, off the page grid as well (network file systems)."""
    real = os.preadv

    def short(handle: int, buffers: list[memoryview], offset: int) -> int:
        count = min(real(handle, buffers, offset), ALIGNMENT + 1000)
        buffers[0][count:] = bytes(len(buffers[0]) - count)
        return count

    monkeypatch.setattr(os, "preadv", short)


WAYS = [past_the_cache, without_o_direct, refused_o_direct, in_short_pieces]


@pytest.fixture(params=WAYS)
def way(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, past_the_page_cache: None
) -> None:
    request.param(monkeypatch)


@pytest.mark.usefixtures("way")
def test_any_piece(direct: DirectFiles, path: Path, content: bytes) -> None:
    for offset in EDGES:
        for nbytes in LENGTHS:
            assert read(direct, path, offset, nbytes) == content[offset : offset + nbytes]
    for nbytes in (1, 1233, 1234, 1235, ALIGNMENT, SIZE):  # up to the end of the file
        assert read(direct, path, SIZE - nbytes, nbytes) == content[-nbytes:]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", [SIZE, 5 * ALIGNMENT, 0])
def test_beyond_the_end(direct: DirectFiles, path: Path, size: int) -> None:
    os.truncate(path, size)
    pieces = [(size, 1), (max(0, size - 1), 2), (0, size + 1), (9 * ALIGNMENT, 3)]
    for offset, nbytes in pieces:
        with pytest.raises(NumpyBloomError) as error:
            read(direct, path, offset, nbytes)
        told = f"{path} ends at byte {size:,}, expected {offset + nbytes:,} or more"
        assert str(error.value).startswith(told)


@pytest.mark.usefixtures("way")
def test_several_files_and_threads(direct: DirectFiles, path: Path, content: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(content[::-1])
    contents = {path: content, other: content[::-1]}
    jobs = [(file, offset, nbytes) for file in contents for offset in EDGES for nbytes in LENGTHS]

    def work(job: tuple[Path, int, int]) -> None:
        file, offset, nbytes = job
        assert read(direct, file, offset, nbytes) == contents[file][offset : offset + nbytes]

    with closing(Team(4)) as team:
        team.run(work, iter(jobs * 3))
    assert open_files(path.parent) == sorted([str(path), str(other)])  # opened once each


@pytest.mark.skipif(not files.O_DIRECT, reason="the platform has no O_DIRECT")
def test_past_the_cache_where_the_file_system_can(
    direct: DirectFiles, path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offsets, lengths and addresses are multiples of the page size."""
    asked: list[tuple[int, int, int]] = []
    real = os.preadv

    def preadv(handle: int, buffers: list[memoryview], offset: int) -> int:
        address = np.frombuffer(buffers[0], np.uint8).ctypes.data
        asked.append((offset % ALIGNMENT, len(buffers[0]) % ALIGNMENT, address % ALIGNMENT))
        return real(handle, buffers, offset)

    flags: list[int] = []
    real_open = os.open

    def recorded_open(path: Path, flag: int) -> int:
        flags.append(flag)
        return real_open(path, flag)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "open", recorded_open)
    for offset in EDGES:
        assert read(direct, path, offset, 5001) == content[offset : offset + 5001]
    assert set(asked) == {(0, 0, 0)}
    assert flags[0] & os.O_DIRECT


@pytest.mark.usefixtures("way")
def test_only_the_bytes_asked_for_are_in_the_result(direct: DirectFiles, path: Path) -> None:
    buffer = page_buffer(10)
    assert len(buffer) >= 10 + 2 * (ALIGNMENT - 1)  # they may begin and end within a page
    assert len(direct.read(path, ALIGNMENT - 1, 10, buffer)) == 10


# --- faults ---------------------------------------------------------------------------------------


def removed(path: Path) -> None:
    path.unlink()


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("fault", [removed, a_directory])
def test_unreadable(direct: DirectFiles, path: Path, fault: Callable[[Path], Any]) -> None:
    fault(path)
    with pytest.raises(NumpyBloomError, match=f"^cannot read {path}: "):
        read(direct, path, 0, 10)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden(direct: DirectFiles, path: Path) -> None:
    path.chmod(0)
    with pytest.raises(NumpyBloomError, match=f"^cannot read {path}: Permission denied"):
        read(direct, path, 0, 10)


@pytest.mark.usefixtures("way")
def test_shrinks_while_it_is_open(direct: DirectFiles, path: Path, content: bytes) -> None:
    assert read(direct, path, 0, SIZE) == content
    os.truncate(path, 2 * ALIGNMENT + 5)
    assert read(direct, path, 9, 2 * ALIGNMENT - 4) == content[9 : 2 * ALIGNMENT + 5]
    with pytest.raises(NumpyBloomError, match=f"^{path} ends at byte 8,197, expected 8,198"):
        read(direct, path, 9, 2 * ALIGNMENT - 3)


def test_stays_readable_after_its_name_is_gone(
    direct: DirectFiles, path: Path, content: bytes
) -> None:
    assert read(direct, path, 0, 1) == content[:1]
    path.unlink()
    assert read(direct, path, 0, SIZE) == content


def test_a_file_system_that_opens_for_direct_reads_but_refuses_them(
    direct: DirectFiles, path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def refusing(handle: int, buffers: list[memoryview], offset: int) -> int:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(handle, buffers, offset)

    monkeypatch.setattr(os, "preadv", refusing)
    assert read(direct, path, 0, SIZE) == content
    assert len(open_files(path.parent)) == 1


def test_input_output_error(
    direct: DirectFiles, path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told, and the next attempt is a new one."""
    real, calls = os.preadv, []

    def failing(handle: int, buffers: list[memoryview], offset: int) -> int:
        calls.append(offset)
        if len(calls) == 3:  # the first is made when the file is opened
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(handle, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    assert read(direct, path, 0, 10) == content[:10]
    with pytest.raises(NumpyBloomError) as error:
        read(direct, path, 0, 10)
    assert str(error.value) == f"cannot read {path}: Input/output error"
    assert read(direct, path, 0, 10) == content[:10]


def test_close_closes(path: Path, content: bytes) -> None:
    direct, other = DirectFiles(), path.with_name("other")
    other.write_bytes(content)
    handles = len(list(Path("/proc/self/fd").iterdir()))
    read(direct, path, 0, 10)
    read(direct, other, 0, 10)
    assert open_files(path.parent) == sorted([str(path), str(other)])
    with pytest.raises(NumpyBloomError):
        read(direct, path.with_name("none"), 0, 10)
    direct.close()
    assert open_files(path.parent) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == handles
    direct.close()
