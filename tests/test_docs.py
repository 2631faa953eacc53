"""The pages for readers: their code runs, and prints what they say it prints."""

import importlib
import shlex
from pathlib import Path

import pytest
from pages import Block, Runner, blocks, code_and_output
from support.checkpoints import Checkpoint
from support.commands import Command

from conversion import convert
from numpy_bloom.weights import rates

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

FRESH_INSTALL = "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/"
"""What stands before the first command. `.ci/run` runs the whole line, in a fresh clone."""

NOT_RUN = {
    "python3 -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/python -m pytest": (
        "runs these tests; .ci/run runs it, in a fresh clone"
    ),
    ". .venv/bin/activate": "the tests run in an environment already",
    "git clone <this repository> && cd numpy-bloom": "needs a repository's address",
    "python3 -m venv .venv && .venv/bin/pip install -e '.[test,reference,browser,dev,cluster]'": (
        "downloads torch; .ci/run installs the same"
    ),
    ".venv/bin/python -m pytest": "runs these tests",
    ".venv/bin/python -m pytest --thorough": ".ci/run runs what it adds",
    ".venv/bin/python -m pytest tests/fuzz": ".ci/run runs it",
    ".venv/bin/python -m pytest tests/fuzz --hypothesis-profile long": "takes minutes",
    "pip install '.[cluster]'": "the tests run in an environment already",
    'python -m numpy_bloom.generate "Todos los seres humanos nacen" --cluster local:3': (
        "needs the extra; tests/cluster runs such commands"
    ),
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL=10s dask scheduler --port 8786": "does not end",
    "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False "
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL=500ms": "of a shell",
    "export DASK_DISTRIBUTED__WORKER__MEMORY__TARGET=False "
    "DASK_DISTRIBUTED__WORKER__MEMORY__SPILL=False "
    "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False": "of a shell",
    "dask worker tcp://first:8786 --nworkers 1 --nthreads 8 --memory-limit 60GB": "does not end",
    'python -m numpy_bloom.generate "Once upon a time" --model /models/bloom-176b '
    "--cluster tcp://first:8786": "needs machines",
    "python -m numpy_bloom.evaluate TEXTFILE --model /models/bloom-176b --cluster "
    "tcp://first:8786": "needs machines",
    "python -m conversion.split /models/bloom-176b --parts 3": "needs such a model",
    ".venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy": (
        ".ci/run runs it"
    ),
    "bash .ci/run": "runs these tests, among all else",
}
"""Command lines of the pages that are not run here, each with the reason."""

CODE = ("python", "sh")
COMMANDS = ("python", ".venv/", ". ", "pip ", "git ", "bash ", "$ ", ">>> ")
"""How a line begins that should stand in a block of code."""


@pytest.fixture
def offline_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the pages' commands find all that they name: local stand-ins, two blocks each, for the
    checkpoints that they download, and files of the reader's own."""
    for seed, name in enumerate(("bloom-560m", "bloom-7b1", "bloom")):
        endless = Checkpoint(seed=seed, dtype="bfloat16", config={"eos_token_id": None})
        endless.write(tmp_path / "bigscience" / name)
    convert(tmp_path / "bigscience" / "bloom-7b1", tmp_path / "bloom-7b1", "keep")
    (tmp_path / "prompts.txt").write_text("Once upon a time\nTodos los\n")
    (tmp_path / "TEXTFILE").write_text("Once upon a time there was a text.\n")
    monkeypatch.setattr(rates, "MEMORY_BYTES", 1 << 20)  # less to measure with
    monkeypatch.setattr(rates, "PRODUCTS", 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def without_comment(line: str) -> str:
    return line.partition(" #")[0].rstrip()


def run_commands(lines: str, command: Command, folder: Path) -> str:
    """Run a block of command lines within this process.

    Returns:
        What they print on stdout, but for what a line sends to a file.
    """
    printed = ""
    for line in map(without_comment, lines.splitlines()):
        if line in NOT_RUN or not line:
            continue
        words = shlex.split(line.removeprefix(FRESH_INSTALL))
        python, option, name, *arguments = words
        assert (python, option) == ("python", "-m"), f"run it, or list it in NOT_RUN: {line}"
        *arguments, target = arguments if ">" in arguments else [*arguments, ">", None]
        module = importlib.import_module(name + (".__main__" if name == "conversion" else ""))
        result = command(module, *arguments[:-1])
        assert result.code == 0, f"{line}\n{result.err}"
        if target is None:
            printed += result.out
        else:
            (folder / target).write_text(result.out)
    return printed


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_code_prints_what_the_page_says(path: Path, offline_folder: Path, command: Command) -> None:
    runner = Runner(path.name)
    for code, output in code_and_output(path.read_text(encoding="utf-8")):
        where = f"{path.relative_to(ROOT)}:{code.line}"
        assert code.language in CODE, f"{where}: expected a block of {' or '.join(CODE)}"
        if code.language == "python":
            printed = runner.run(code.content, code.line)
            assert printed == (output.content if output else ""), where
        else:
            printed = run_commands(code.content, command, offline_folder)
            assert output is None or printed == output.content, where


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_code_is_hidden_from_these_tests(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    found = blocks(page)
    assert page.count("```") == 2 * len(found), f"{path.name}: a fence that is not understood"
    hidden = [block for block in found if not block.language and _looks_like_code(block)]
    assert not hidden, f"{path.name}: name the language of the block"


def _looks_like_code(block: Block) -> bool:
    return any(line.startswith(COMMANDS) for line in block.content.splitlines())


def test_what_is_not_run_is_on_a_page() -> None:
    pages = [path.read_text(encoding="utf-8").splitlines() for path in PAGES]
    lines = {without_comment(line) for page in pages for line in page}
    assert set(NOT_RUN) <= lines
