"""Fixtures of the tests of clusters."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.threads import no_deadlock


@pytest.fixture(autouse=True)
def nothing_hangs() -> Iterator[None]:
    with no_deadlock(60):
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from clusters import model_folder  # noqa: PLC0415  (skips where Dask is not installed)

    return model_folder(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="module")
def cluster() -> "Iterator[Any]":
    """Two processes."""
    from clusters import distributed  # noqa: PLC0415

    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0"
    ) as cluster:
        yield cluster
