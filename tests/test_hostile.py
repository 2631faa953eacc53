"""Hostile checkpoints: each gets its one line, in little memory, and does no harm."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkpoints import Checkpoint
from hostile import CONFIGS, INDEXES, LINKS, TOKENIZERS, Hostile
from hostile_arrays import HEADERS, PICKLES, ZIPS

from conversion import convert
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
