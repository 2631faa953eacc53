"""Fixtures of the tests of clusters."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from threads import no_deadlock


@pytest.fixture(autouse=True)
def nothing_hangs() -> Iterator[None]:
    with no_deadlock(60):
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from clusters import model_folder  # noqa: PLC0415  (skips where Dask is not installed)

    return model_folder(tmp_path_factory.mktemp("cluster"))
