"""Hostile checkpoints: each gets its one line, in little memory, and does no harm."""

import json
import os
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import VOCAB_SIZE, Checkpoint, byte_ids
from support.conversions import converted
from support.hostile import Hostile
from support.hostile_arrays import HEADERS, PICKLES, ZIPS
from support.hostile_json import CONFIGS, INDEXES
from support.hostile_tokenizers import LINKS, TOKENIZERS

import numpy_bloom
from conversion import convert
from conversion.source_tensor import SourceTensor
from numpy_bloom import tokenizer
from numpy_bloom.errors import NumpyBloomError

CORPUS = [*CONFIGS, *INDEXES, *TOKENIZERS, *LINKS, *HEADERS, *PICKLES, *ZIPS]
MOST_BYTES = 200_000_000
PAGE = Path(__file__).parent.parent / "docs" / "hostile.md"


@contextmanager
def limited() -> Iterator[None]:
    """A block during which the process may take little more memory than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("hostile", CORPUS, ids=[hostile.name for hostile in CORPUS])
def test_corpus(tmp_path: Path, hostile: Hostile) -> None:
    source = Checkpoint(blocks=1).write(tmp_path / "source")
    hostile.spoil(source)
    with limited(), pytest.raises(NumpyBloomError) as error:
        convert(source, tmp_path / "model")
    assert str(error.value) == hostile.line.replace("{folder}", str(source))
    assert list(tmp_path.iterdir()) == [source]


def test_the_page_shows_the_corpus() -> None:
    """docs/hostile.md has each entry with its line; long lines are cut short there."""
    page = PAGE.read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert rows[1:] == [row(hostile) for hostile in CORPUS]


def row(hostile: Hostile) -> str:
    line = hostile.line.replace("{folder}", "SOURCE").replace("|", r"\|")
    if len(line) > 250:
        line = f"{line[:180]} … {line[-60:]}"
    return f"| {hostile.name} | {hostile.what} | `{line}` |"


def test_the_files_of_the_hubs_cache_are_links(tmp_path: Path) -> None:
    """From `snapshots/<commit>` to `blobs`, and no further."""
    blobs, source = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "0123"
    Checkpoint(blocks=1).write(blobs)
    source.mkdir(parents=True)
    for path in blobs.iterdir():
        (source / path.name).symlink_to(Path("../../blobs", path.name))
    convert(source, tmp_path / "model")
    source.parent.rename(tmp_path / "cache" / "others")
    with pytest.raises(NumpyBloomError, match=r"is a link out of"):
        convert(tmp_path / "cache" / "others" / "0123", tmp_path / "other")
    (tmp_path / "cache" / "others").rename(source.parent)
    (blobs / "tokenizer.json").rename(tmp_path / "outside")
    (blobs / "tokenizer.json").symlink_to(tmp_path / "outside")
    with pytest.raises(NumpyBloomError, match=rf"is a link out of .*, to {tmp_path}/outside; "):
        convert(source, tmp_path / "other")


def test_links_within_the_folder(tmp_path: Path) -> None:
    source = Checkpoint(blocks=1).write(tmp_path / "source")
    (source / "model.safetensors").rename(source / "weights")
    (source / "model.safetensors").symlink_to("weights")
    convert(source, tmp_path / "model")


def test_a_tokenizer_neither_pads_nor_cuts(tmp_path: Path) -> None:
    """Whatever its file says; that would cost gigabytes, or the text."""
    checkpoint = Checkpoint(blocks=1)
    assert checkpoint.tokenizer is not None
    checkpoint.tokenizer.enable_truncation(2)
    checkpoint.tokenizer.enable_padding(length=10**12)
    with numpy_bloom.load(converted(checkpoint, tmp_path)) as model:
        assert model.encode("abc") == byte_ids("abc")


def test_the_tokenizer_that_is_loaded_is_the_one_that_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Checkpoint(blocks=1).write(tmp_path) / tokenizer.TOKENIZER
    check = tokenizer._faults

    def replace_and_check(values: dict[str, Any]) -> Iterator[str]:
        path.write_text("{}")
        return check(values)

    monkeypatch.setattr(tokenizer, "_faults", replace_and_check)
    loaded = tokenizer.read_tokenizer(tmp_path, VOCAB_SIZE)
    assert loaded is not None
    assert tokenizer.encode(loaded, "abc") == byte_ids("abc")


@pytest.mark.parametrize("content", ["[]", "5", "null"])
def test_a_tokenizer_that_is_no_object(tmp_path: Path, content: str) -> None:
    (tmp_path / tokenizer.TOKENIZER).write_text(content)
    with pytest.raises(NumpyBloomError, match=r"tokenizer\.json must hold a JSON object, not "):
        tokenizer.read_tokenizer(tmp_path, VOCAB_SIZE)


def test_a_tokenizer_that_fails(tmp_path: Path) -> None:
    """An unknown character, say, is told in one line."""
    checkpoint = Checkpoint(blocks=1)
    source = checkpoint.write(tmp_path / "source")
    values = json.loads((source / "tokenizer.json").read_text())
    values["model"]["unk_token"] = "<none>"
    values["pre_tokenizer"] = None
    (source / "tokenizer.json").write_text(json.dumps(values))
    convert(source, tmp_path / "model")
    told = r"^the tokenizer cannot split the text: "
    with (
        numpy_bloom.load(tmp_path / "model") as model,
        pytest.raises(NumpyBloomError, match=told),
    ):
        model.encode("\u4e00")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_pipes_in_a_model(tmp_path: Path, name: str) -> None:
    """Reading one would wait forever."""
    model = converted(Checkpoint(blocks=1), tmp_path)
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    with pytest.raises(NumpyBloomError, match=rf"{model}/{name}:? (it )?is no (regular )?file"):
        numpy_bloom.load(model)


def test_memory_of_a_transposed_tensor(tmp_path: Path) -> None:
    """Each stretch of its rows takes no more than itself; read as a span, it would take all."""
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.truncate(4 * 4096 * 4096)
        file.seek(4 * (7 * 4096 + 5))
        file.write(np.float32(3).tobytes())
    tensor = SourceTensor(path, "w", "float32", (4096, 4096), 0, (1, 4096))
    tracemalloc.start()
    rows = tensor.read_rows(4, 12)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.argwhere(rows).tolist() == [[1, 7]]
    assert peak < 2 * rows.nbytes
    os.truncate(path, 4 * 4096 * 4096 - 1)
    with pytest.raises(NumpyBloomError, match=r"'w' in .* is truncated"):
        tensor.read_rows(4000, 4096)


def test_errors_are_one_printable_line() -> None:
    assert str(NumpyBloomError("a \u00e9\n\x1b[2J\ud800\u202e b")) == r"a é\n\x1b[2J\ud800\u202e b"
    text = str(NumpyBloomError("begin" + "x" * 1_000_000 + "the way out"))
    assert len(text) <= 4000 and text.startswith("begin") and text.endswith("xthe way out")
