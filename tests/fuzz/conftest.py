"""How long to fuzz: some minutes of other examples each time with `--hypothesis-profile long`."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
settings.register_profile("short", max_examples=40, derandomize=True, **COMMON)
settings.register_profile("long", max_examples=250, print_blob=True, **COMMON)
settings.load_profile("short")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for one example after the other."""
    return tmp_path_factory.mktemp("fuzz")
