"""Commands as processes: Ctrl-C, and streams that are closed, full or not UTF-8."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.checkpoints import Checkpoint
from support.conversions import converted

import numpy_bloom

ROOT = Path(__file__).parent.parent
PROMPT = "Todos los"
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends a text by itself."""
    checkpoint = Checkpoint(lm_head="different", config={"eos_token_id": None})
    return converted(checkpoint, tmp_path_factory.mktemp("endless"))


def started(
    arguments: Sequence[object], stdout: int = subprocess.PIPE, **environment: str
) -> "subprocess.Popen[bytes]":
    """Starts `generate` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "numpy_bloom.generate", *map(str, arguments)],
        cwd=ROOT,
        env=BUFFERED | environment,
        stderr=subprocess.PIPE,
        stdout=stdout,
    )


def test_interruption_of_a_process(model: Path) -> None:
    # Where this process ignores Ctrl-C, as in the background of a shell, its children do too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = started(
            [PROMPT, "--model", model, "--max-new-tokens=100000", "--show-tokens"],
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"Token 1 ")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"\ngenerate: interrupted\n")


@pytest.mark.parametrize("form", [[], ["--json"], ["--show-tokens"]])
def test_reader_that_went_away(model: Path, form: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [PROMPT, "--model", model, "--max-new-tokens=3", *form]
    process = started(arguments, stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=60)
    told = b"generate: error: stdout was closed before all was written\n"
    assert (process.returncode, err) == (1, told)


@pytest.mark.parametrize(
    ("redirection", "code", "told"),
    [
        (">&-", 1, r"generate: error: stdout is closed\n"),
        (">/dev/full", 1, r"generate: error: cannot write stdout: No space left on device\n"),
        ("<&-", 0, r".*peak memory.*\n"),
        ("2>&-", 0, ""),
    ],
)
def test_streams_that_are_closed_or_full(
    model: Path, redirection: str, code: int, told: str
) -> None:
    arguments = [PROMPT, "--model", str(model), "--max-new-tokens=3"]
    command = [sys.executable, "-m", "numpy_bloom.generate", *arguments]
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command]
    result = subprocess.run(shell, cwd=ROOT, env=BUFFERED, capture_output=True, check=False)
    assert result.returncode == code
    assert re.fullmatch(told, result.stderr.decode())
    with numpy_bloom.load(model) as bloom:
        generation = bloom.generate(PROMPT, max_new_tokens=3)
        text = "".join(token.text for token in generation)
    assert result.stdout.decode() == ("" if code else text + "\n")


def test_a_path_that_is_not_utf_8(model: Path, tmp_path: Path) -> None:
    """It can be opened, and is told with its bytes."""
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    shutil.copytree(os.fsencode(model), folder)
    command = [sys.executable, "-m", "conversion.verify", folder]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert rb"caf\udce9" in result.stdout


def test_output_is_utf_8_in_every_locale(model: Path) -> None:
    arguments = ["世界", "--model", model, "--max-new-tokens=1", "--json"]
    process = started(arguments, PYTHONIOENCODING="ascii")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert json.loads(out.decode())["prompt"] == "世界"
