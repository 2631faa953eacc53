"""`python -m numpy_bloom.benchmark`: what it reports hangs together. No speed is tested."""

import json
from pathlib import Path

import pytest
from support.checkpoints import Checkpoint
from support.commands import Command
from support.conversions import converted

from numpy_bloom import benchmark
from numpy_bloom.weights import rates


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rates, "MEMORY_BYTES", 1 << 20)  # less to measure with
    monkeypatch.setattr(rates, "PRODUCTS", 2)
    return converted(Checkpoint(), tmp_path)


def test_json(command: Command, model: Path) -> None:
    result = command(benchmark, "--model", model, "--json", "--new-tokens=2", "--threads=1")
    assert (result.code, result.err) == (0, "")
    measured = json.loads(result.out)
    assert measured["threads"] == 1
    assert measured["prefill_tokens"] == 128
    assert measured["pass_bytes_disk"] == 0
    weights = measured["pass_bytes_memory"]
    assert weights > 0
    assert measured["decode_limit"] == pytest.approx(measured["memory_rate"] / weights)
    assert measured["prefill_limit"] <= 128 * measured["decode_limit"] * (1 + 1e-9)
    assert min(measured[name] for name in measured if name.endswith("_rate")) > 0


def test_table(command: Command, model: Path) -> None:
    result = command(benchmark, "--model", model, "--new-tokens=1", "--prompt-tokens=3")
    rows = [line.split("  ")[0] for line in result.out.splitlines()]
    assert rows[:5] == ["threads", "disk", "memory", "arithmetic", "a pass reads"]
    assert rows[-2:] == ["prefill of 3", "decode"]
