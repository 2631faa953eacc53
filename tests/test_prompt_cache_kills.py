"""Runs that are killed while they keep a text, at every moment; and Ctrl-C, and power failures."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.numpy import load_file
from support.checkpoints import Checkpoint, byte_ids
from support.conversions import converted, failing

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.generation.prompt_cache_file import PromptCacheFile
from numpy_bloom.running.model import Model

PROMPT = byte_ids("Todos los todos")
NEW = 8
SCRIPT = Path(__file__).parent / "support" / "killed_runs.py"
RUNS = {
    "greedy": {"seed": 0},  # so that the file is the same
    "sampled": {"temperature": 1.5, "seed": 3},
    "guesses": {"seed": 0, "draft_model": "prompt-lookup", "draft_tokens": 3},
    "sampled guesses": {"temperature": 0.5, "seed": 1, "draft_model": "prompt-lookup"},
}
KILLED = [
    ("greedy", False),
    ("sampled", True),
    ("guesses", True),
    ("sampled guesses", False),
]


@pytest.fixture
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With tied embeddings a random model says each token several times, so that guesses hold."""
    head = None if "guesses" in name else "different"
    checkpoint = Checkpoint(hidden=8, lm_head=head, config={"eos_token_id": None})
    return converted(checkpoint, tmp_path_factory.mktemp("kills"))


@pytest.fixture
def model(folder: Path) -> Iterator[Bloom]:
    with numpy_bloom.load(folder, threads=1) as model:
        yield model


class Run(NamedTuple):
    """What a child told.

    Attributes:
        code: how it ended; -9 if it was killed.
        restored: tokens that were in the file; None if it was killed before that was told.
        tokens: that it handed out, each with its log-probability.
        end: why the text ended, and how many steps that took; None if it was killed.
    """

    code: int
    restored: int | None
    tokens: list[Any]
    end: Any


class Children:
    """Runs of one text, one after the other."""

    def __init__(self, folder: Path, file: Path, options: dict[str, Any]) -> None:
        command = [sys.executable, SCRIPT, folder, file]
        self._process = subprocess.Popen(
            [*map(str, command), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )

    def run(self, last: int, *, resume: bool = False) -> Run:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{last} {int(resume)}\n")
        self._process.stdin.flush()
        code, *told = json.loads(self._process.stdout.readline())
        end = told.pop() if code == 0 else None
        return Run(code, told[0] if told else None, told[1:], end)

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


@pytest.mark.parametrize(("name", "replaced"), KILLED)
def test_killed_at_any_step(
    folder: Path, model: Bloom, tmp_path: Path, step: int, name: str, replaced: bool
) -> None:
    """At every fourth step, or each, some runs several times: always the same text, to the bit, and
    no token that was handed out is lost."""
    random.seed(name)
    file, old = tmp_path / "text", b""
    if replaced:  # a file of another text, whose beginning is taken over
        list(model.generate(PROMPT[:8], max_new_tokens=2, prompt_cache=file))
        old = file.read_bytes()
    options = {"prompt": PROMPT, "max_new_tokens": NEW, **RUNS[name]}
    with Children(folder, file, options) as children:
        whole = children.run(0)
        assert (whole.code, whole.restored, len(whole.tokens)) == (0, 0, NEW)
        steps, ended = whole.end[1], file.read_bytes()
        assert steps > 50
        ends = load_file(file)["tokens"][len(PROMPT) :, 2]  # where passes ended
        assert (0 in ends) == ("guesses" in name)
        for first in range(1 + replaced, steps + 1, step):
            file.unlink()
            if replaced:
                file.write_bytes(old)
            given, last = 0, first
            resume = False
            while (run := children.run(last, resume=resume)).code != 0:
                assert run.code == -signal.SIGKILL
                assert run.restored is None or run.restored >= given
                assert run.tokens == whole.tokens[: len(run.tokens)]
                given = max(given, len(run.tokens))
                last = random.choice([0, random.randrange(1, steps)])
                # Before the first pass there may be nothing to go on with.
                resume = file.exists() and file.read_bytes() != old
            assert run.restored is not None
            assert run.restored >= given
            assert (run.tokens, run.end[0]) == (whole.tokens, "length")
            assert file.read_bytes() == ended


@pytest.mark.parametrize("name", RUNS)
def test_interrupted_anywhere(
    model: Bloom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, name: str
) -> None:
    """Ctrl-C in a pass or a write: one goes on with the generation, or with the file."""
    options: dict[str, Any] = {"max_new_tokens": NEW, **RUNS[name]}
    expected = [token.id for token in model.generate(PROMPT, **options)]
    file = tmp_path / "text"
    interrupted = 0
    for holder, function in ((os, "pwrite"), (os, "fsync"), (Model, "run")):
        for call in itertools.count(1, step):
            stopped = False
            with monkeypatch.context() as patch:
                stop = failing(getattr(holder, function), call, KeyboardInterrupt())
                patch.setattr(holder, function, stop)
                generation, got = None, []
                try:
                    generation = model.generate(PROMPT, prompt_cache=file, **options)
                    got += [token.id for token in generation]
                except KeyboardInterrupt:
                    stopped = True
            interrupted += stopped
            if generation is None:
                assert [path.name for path in tmp_path.iterdir()] in ([], ["text"])
                continue
            content = file.read_bytes()
            rest = [token.id for token in generation]
            assert generation.token_ids == expected
            assert expected[NEW - len(rest) :] == rest
            file.write_bytes(content)
            resumed = model.resume(file)
            assert len(resumed.token_ids) >= len(got)
            assert [token.id for token in resumed] == expected
            file.unlink()
            if not stopped:  # there was no such call any more
                break
    assert interrupted > 30 // step


def power_failures(
    model: Bloom, file: Path, run: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[bytes, int]]:
    """What may be on the disk if the power fails during a run: all writes before the last fsync,
    and any of those after it. With each, how many tokens were handed out by then."""
    states: list[tuple[bytes, int]] = []
    synced = bytearray()
    open_writes: list[tuple[int, bytes]] = []
    given = 0

    def applied(writes: list[tuple[int, bytes]]) -> bytes:
        content = bytearray(synced)
        for offset, part in writes:
            content[offset : offset + len(part)] = part
        return bytes(content)

    def collect() -> None:
        for _ in range(3):
            chosen = [write for write in open_writes if random.random() < 0.5]
            states.append((applied(chosen), given))
            torn = [(at, part[: random.randrange(len(part) // 32 + 1) * 32]) for at, part in chosen]
            states.append((applied(torn), given))

    pwrite, fsync = os.pwrite, os.fsync

    def noted(handle: int, content: Any, offset: int) -> int:
        open_writes.append((offset, bytes(content)))
        if synced:
            collect()
        return pwrite(handle, content, offset)

    def flushed(handle: int) -> None:
        nonlocal synced
        fsync(handle)
        if synced:
            synced = bytearray(applied(open_writes))
        open_writes.clear()

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", noted)
        patch.setattr(os, "fsync", flushed)
        generation = run()
        synced = bytearray(file.read_bytes())
        open_writes.clear()
        for _ in generation:
            given += 1
    yield from states


@pytest.mark.parametrize("name", RUNS)
def test_power_failures(
    model: Bloom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, name: str
) -> None:
    """The disk has lost some of what was not synchronized: at most the last pass is lost."""
    random.seed(name)
    file = tmp_path / "text"
    options: dict[str, Any] = {"max_new_tokens": NEW, **RUNS[name]}
    expected = [(token.id, token.logprob) for token in model.generate(PROMPT, **options)]

    def run() -> Any:
        return model.generate(PROMPT, prompt_cache=file, **options)

    states = dict.fromkeys(power_failures(model, file, run, monkeypatch))
    assert len(states) > 100
    for content, given in [*states][::step]:
        file.write_bytes(content)
        kept = PromptCacheFile.open(file, write=True, ignore_damaged=False)
        most = 1 + options.get("draft_tokens", 8) * ("draft_model" in options)
        assert len(kept.ids) - len(PROMPT) >= given - most
        kept.close()
        assert [(token.id, token.logprob) for token in model.resume(file)] == expected
