"""Fixtures for the tests here and in the folders below, which find `parity` through this file."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import commands
import pytest
from recorded import Recorded, read_recorded


@pytest.fixture
def recorded_model(tmp_path: Path) -> Iterator[Callable[[str], Recorded]]:
    """Opens one of the recorded models by name; closed after the test."""
    with ExitStack() as stack:

        def open_recorded(name: str) -> Recorded:
            recorded = read_recorded(name, tmp_path)
            stack.enter_context(recorded.bloom)
            return recorded

        yield open_recorded


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> commands.Command:
    """Runs a command within this process."""
    return commands.runner(monkeypatch, capsys)
