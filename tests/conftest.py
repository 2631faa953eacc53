"""Fixtures for the tests here and in the folders below, which find `support` through this file."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import commands
from support.recorded import Recorded, read_recorded

from conversion import direct
from numpy_bloom.weights import files


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true", help="cut runs short at four times as many places"
    )


@pytest.fixture
def step(pytestconfig: pytest.Config) -> int:
    """Tests that cut runs short, at very many places, do so at each place that is this far from the
    one before."""
    return 1 if pytestconfig.getoption("thorough") else 4


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_disks() -> Iterator[None]:
    """No power fails here. What is synchronized when is tested by taking note of the calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        # Each look-up of a token in a small model would wait for a disk, too. Tests of reading and
        # writing past the page cache, and processes of their own, do so: see `past_the_page_cache`.
        patch.setattr(files, "O_DIRECT", 0)
        patch.setattr(direct, "O_DIRECT", 0)
        yield


@pytest.fixture
def past_the_page_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read and written as the platform has it, and not through the page cache."""
    for module in (files, direct):
        monkeypatch.setattr(module, "O_DIRECT", getattr(os, "O_DIRECT", 0))


@pytest.fixture(scope="session")
def recorded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recorded models are converted to, each once."""
    return tmp_path_factory.mktemp("recorded")


@pytest.fixture
def recorded_model(recorded_folder: Path) -> Iterator[Callable[[str], Recorded]]:
    """Opens one of the recorded models by name; closed after the test."""
    with ExitStack() as stack:

        def open_recorded(name: str) -> Recorded:
            recorded = read_recorded(name, recorded_folder)
            stack.enter_context(recorded.bloom)
            return recorded

        yield open_recorded


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> commands.Command:
    """Runs a command within this process."""
    return commands.runner(monkeypatch, capsys)
