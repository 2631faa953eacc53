"""How runs are cut short: faults at a random read or tile, and Ctrl-C between two lines."""

import ast
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.folder import block_file
from numpy_bloom.weights.formats.base import Product
from numpy_bloom.weights.formats.floating import BFloat16


class Fault:
    """Something that happens once, when reads or tiles have been counted down; see `arm`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._happen: Callable[[], Any] | None = None
        self._left = 0

    def arm(self, after: int, happen: Callable[[], Any]) -> None:
        with self._lock:
            self._happen, self._left = happen, after

    def disarm(self) -> bool:
        """No longer. Tells whether it has happened."""
        with self._lock:
            happened, self._happen = self._happen is None, None
            return happened

    def count(self) -> Any:
        """One more read or tile; what happens at it may raise, or return something."""
        with self._lock:
            self._left -= 1
            if self._happen is None or self._left > 0:
                return None
            happen, self._happen = self._happen, None
            return happen()  # with the lock, so that it is over when `disarm` returns


class Faults:
    """Faults that are planted below a model."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads, self.tiles = Fault(), Fault()
        self._file = folder / block_file(1)
        self._content = self._file.read_bytes()
        real = os.preadv

        def preadv(handle: int, buffers: list[memoryview], offset: int) -> int:
            given = self.reads.count()
            return real(handle, buffers, offset) if given is None else int(given)

        product = BFloat16.product

        def counted(format: BFloat16, x: Floats) -> Product:
            multiply = product(format, x)

            def multiply_counted(*args: Any) -> Any:
                self.tiles.count()
                return multiply(*args)

            return multiply_counted

        monkeypatch.setattr(os, "preadv", preadv)
        monkeypatch.setattr(BFloat16, "product", counted)
        self.kinds: dict[str, tuple[Fault, Callable[[], Any]]] = {
            "input/output error": (self.reads, self._fail),
            "the file ends": (self.reads, lambda: 0),
            "the file is cut": (self.reads, self._cut),
            "Ctrl-C in a tile": (self.tiles, self._interrupt),
            "no memory in a tile": (self.tiles, self._no_memory),
            "signal at a read": (self.reads, lambda: signal.raise_signal(signal.SIGINT)),
            "signal at a tile": (self.tiles, lambda: signal.raise_signal(signal.SIGINT)),
        }

    @staticmethod
    def _fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    @staticmethod
    def _interrupt() -> None:
        raise KeyboardInterrupt

    @staticmethod
    def _no_memory() -> None:
        raise MemoryError

    def _cut(self) -> None:
        os.truncate(self._file, 5000)

    def repair(self) -> bool:
        """Tells whether there was a fault at all."""
        self._file.write_bytes(self._content)
        happened = [fault.disarm() for fault in (self.reads, self.tiles)]
        return any(happened)


@cache
def safe_lines(path: Path) -> set[int]:
    """Lines at which the interpreter never looks for Ctrl-C, though tracing would let it in.

    They are a `try`; the end of a `with`, which is told as its first line, or as the line of what
    it entered: a lock would stay taken; and a `return` from an `except`: Python 3.11 would for ever
    hold what was caught, and with it the arrays of a pass.
    """
    nodes = list(ast.walk(ast.parse(path.read_text())))
    lines = {node.lineno for node in nodes if isinstance(node, ast.With | ast.Try)}
    lines |= {node.context_expr.lineno for node in nodes if isinstance(node, ast.withitem)}
    for handler in (node for node in nodes if isinstance(node, ast.ExceptHandler)):
        lines |= {node.lineno for node in ast.walk(handler) if isinstance(node, ast.Return)}
    return lines


class Interrupt:
    """Ctrl-C at the n-th line of some files that this thread executes.

    Attributes:
        lines: how many were executed.
    """

    def __init__(self, after: int, files: Iterable[Path]) -> None:
        self.lines = 0
        self._after = after
        self._safe = {str(path): safe_lines(path) for path in files}

    def __enter__(self) -> "Interrupt":
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._line if frame.f_code.co_filename in self._safe else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and frame.f_lineno not in self._safe[frame.f_code.co_filename]:
            self.lines += 1
            if self.lines == self._after:
                raise KeyboardInterrupt
        return self._line
