"""Fixtures for tests that run transformers beside our model."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from support.dials import in_many_pieces

from numpy_bloom.running.model import Model

if TYPE_CHECKING:
    from live import Opener


DIAL = {"least": 0.0, "middle": 0.5, "full": None}
"""How much of the weights beyond what they pass through fits the memory; None: no limit."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--dial`: the same tests with the weights read from disk in every pass."""
    parser.addoption("--dial", choices=DIAL, default="full", help="memory (default: %(default)s)")


@pytest.fixture(scope="session", autouse=True)
def dial(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every model gets as much memory as `--dial` says, and has its weights in many chunks."""
    share = DIAL[request.config.getoption("--dial", "full")]
    if share is None:
        yield
        return
    make_room = Model._make_room

    def turned(self: Model, *run: Any) -> None:
        weights, least = self.stream.nbytes, self._least_weights(resident=False)
        self.memory = self._needed(*run) + least + int(share * (weights - least))
        make_room(self, *run)
        assert self.stream.bytes_pinned < weights or weights == least  # as large as the buffers

    with pytest.MonkeyPatch.context() as patch:
        in_many_pieces(patch)
        patch.setattr(Model, "_make_room", turned)
        yield


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Opener]":
    """Opens a `live.Case` on both sides, each case once."""
    import torch  # noqa: PLC0415 - only the tests that ask for this fixture need it
    from live import Opener  # noqa: PLC0415

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are too small to be shared out
    opener = Opener(tmp_path_factory.mktemp("live"))
    yield opener
    opener.close()
    torch.set_num_threads(threads)
