"""Running a command within the test's process."""

import io
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from numpy_bloom.command import run_command


class Result(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A function that runs the `main` of a command's module with some arguments."""

    def run(module: Any, *arguments: object) -> Result:
        name = module.__name__.partition(".__main__")[0].rpartition(".")[2]
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            code = run_command(module.main, name)
        except SystemExit as end:  # of argparse
            code = int(end.code or 0)
        return Result(code, *capsys.readouterr())

    return run


def set_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> None:
    # As it is in a locale without UTF-8.
    stdin = None if content is None else io.TextIOWrapper(io.BytesIO(content), "ascii")
    monkeypatch.setattr(sys, "stdin", stdin)


def check_failure(result: Result, name: str, told: str, code: int = 1) -> None:
    """One line on stderr, and nothing on stdout."""
    assert result.out == ""
    assert result.err.startswith(f"{name}: error: ")
    assert result.err.count("\n") == 1
    assert result.err.endswith("\n")
    assert told in result.err
    assert result.code == code
