"""Fixtures for tests that run transformers beside our model."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from live import Opener


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
