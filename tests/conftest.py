"""Fixtures for the tests here and in the folders below, which find `support` through this file."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import batches, commands, prompt_caches, streams
from support.checkpoints import Checkpoint
from support.conversions import converted
from support.dials import in_many_pieces, model_folder
from support.recorded import Recorded, read_recorded
from support.threads import no_deadlock

import numpy_bloom
from conversion import direct
from numpy_bloom.bloom import Bloom
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
def ctrl_c_is_heard() -> None:
    """Also if the tests are a shell's job in the background, which begins with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture
def many_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small matrices have many chunks and tiles; and nothing hangs."""
    in_many_pieces(monkeypatch)
    with no_deadlock():
        yield


@pytest.fixture
def many_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with batches.many_chunks(monkeypatch):
        yield


@pytest.fixture(scope="session")
def chunked_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two blocks with many chunks, under `many_pieces` or `many_chunks`; nobody changes
    it."""
    return model_folder(tmp_path_factory.mktemp("chunked"))


@pytest.fixture
def chunked_model(chunked_folder: Path) -> Iterator[Bloom]:
    with numpy_bloom.load(chunked_folder, threads=2) as model:
        yield model


@pytest.fixture
def streamed(tmp_path: Path) -> Iterator[streams.Streamed]:
    """A stream of chunks, with what it should read."""
    with streams.opened(tmp_path) as streamed:
        yield streamed


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model; nobody changes it."""
    return converted(Checkpoint(), tmp_path_factory.mktemp("small"))


@pytest.fixture
def small_copy(small_folder: Path, tmp_path: Path) -> Path:
    """The same model, in the test's own folder."""
    return Path(shutil.copytree(small_folder, tmp_path / "model"))


@pytest.fixture(scope="module")
def endless_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bloom]:
    checkpoint = Checkpoint(heads=3, hidden=24, **prompt_caches.ENDLESS)
    with numpy_bloom.load(converted(checkpoint, tmp_path_factory.mktemp("endless"))) as model:
        yield model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model whose texts make small files; nobody changes it."""
    return converted(Checkpoint(**prompt_caches.TINY), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny_model(tiny_folder: Path) -> Iterator[Bloom]:
    with numpy_bloom.load(tiny_folder, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def tiny_text(tiny_model: Bloom) -> list[int]:
    """What the tiny model says after `prompt_caches.PROMPT`."""
    return prompt_caches.ids_of(
        tiny_model.generate(prompt_caches.PROMPT, max_new_tokens=prompt_caches.NEW)
    )


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """Where a text is to be kept; nothing is there yet."""
    return tmp_path / "text"


@pytest.fixture
def begun_file(tiny_model: Bloom, text_file: Path) -> Path:
    """It keeps the tiny model's text, which was cut off."""
    prompt, begun, new = prompt_caches.PROMPT, prompt_caches.BEGUN, prompt_caches.NEW
    prompt_caches.cut_off(tiny_model, text_file, prompt, begun, max_new_tokens=new)
    return text_file


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each pass takes in."""
    return prompt_caches.count_fed(monkeypatch)
