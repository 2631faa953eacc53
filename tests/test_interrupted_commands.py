"""Ctrl-C while a command is still being imported, where Python drops it, and at its end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INTERRUPTS = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(3)\n"
INTERRUPTS_COLLECTION = """
import gc, os, signal, sys
def interrupt(phase, info):
    begun = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if begun and "numpy_bloom.generate_options" in sys.modules:
        gc.callbacks.remove(interrupt)
        os.kill(os.getpid(), signal.SIGINT)
gc.callbacks.append(interrupt)
"""
INTERRUPTS_END = """
import atexit, os, signal, time
atexit.register(print, "done")
atexit.register(time.sleep, 0.1)
atexit.register(os.kill, os.getpid(), signal.SIGINT)
"""
COMMANDS = [
    *("conversion", "conversion.verify", "conversion.export", "conversion.split"),
    *(f"numpy_bloom.{name}" for name in ("generate", "evaluate", "benchmark", "trace")),
]


def run(folder: Path, *command: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a command that finds modules in a folder first."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        env={
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "module"),
    [*((command, "numpy") for command in COMMANDS), ("numpy_bloom.trace", "argparse")],
)
def test_one_line(tmp_path: Path, command: str, module: str) -> None:
    """While the package is imported, and while the command's own module is."""
    (tmp_path / f"{module}.py").write_text(INTERRUPTS)
    ended = run(tmp_path, command, "--help")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"\ninterrupted\n")


def test_where_python_drops_it(tmp_path: Path) -> None:
    """An exception that leaves a callback of the garbage collector, as Dask has one, is dropped."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS_COLLECTION)
    ended = run(tmp_path, "numpy_bloom.generate", "x", "--max-new-tokens", "2000")
    assert (ended.returncode, ended.stderr) == (130, b"\ngenerate: interrupted\n")


def test_after_the_end_it_comes_once(tmp_path: Path) -> None:
    """Dropped by what the interpreter does at its end, the rest of which is done."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS_END)
    ended = run(tmp_path, "numpy_bloom.generate", "x", "--max-new-tokens", "2")
    assert (ended.returncode, ended.stdout[-5:]) == (0, b"done\n")


def test_other_programs_keep_their_own_way(tmp_path: Path) -> None:
    """Also one that is run as a module and whose package imports ours."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/__init__.py").write_text("import numpy_bloom, conversion")
    program = "import signal; print(signal.getsignal(signal.SIGINT).__name__)"
    (tmp_path / "other/__main__.py").write_text(program)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-m", "other"]
    out = subprocess.check_output(command, env={"PYTHONPATH": path}, text=True)
    assert out == "default_int_handler\n"
