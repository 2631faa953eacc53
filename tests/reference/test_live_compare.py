"""The command that puts our stages beside transformers' and float64."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import compare_trace
from support.conversions import demo_checkpoint

from numpy_bloom.loading import DEMO
from numpy_bloom.model import mlp


def compare(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[str]]:
    demo_checkpoint(folder)
    monkeypatch.setattr(sys, "argv", ["compare_trace", str(folder), str(DEMO), "Alle Menschen"])
    return compare_trace.main(), capsys.readouterr().out.splitlines()


def test_right_implementations_only_round_differently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = compare(tmp_path / "hf", monkeypatch, capsys)
    assert code == 0
    assert lines[-1] == "first divergence: none"
    assert len(lines) == 1 + 75 + 1  # 4 blocks
    for line in lines[1:-1]:
        assert max(float(value) for value in line.split()[1:]) < compare_trace.TOLERANCE


def test_a_wrong_stage_is_named_and_is_further_from_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gelu = mlp.gelu
    monkeypatch.setattr(mlp, "gelu", lambda x: gelu(x) * x.dtype.type(1.001))
    code, lines = compare(tmp_path / "hf", monkeypatch, capsys)
    assert code == 1
    assert lines[-1].startswith("first divergence: blocks.0.mlp.post deviates by")
    (line,) = (line for line in lines if line.startswith("blocks.0.mlp.post"))
    deviation, ours, theirs = (float(value) for value in line.split()[1:])
    assert deviation > 1e-4
    assert ours > 100 * theirs
