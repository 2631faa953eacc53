"""`python -m numpy_bloom.trace`: what it prints, and how it ends."""

from pathlib import Path

import numpy as np
import pytest
from support.commands import Command, check_failure

import numpy_bloom
from numpy_bloom import trace
from numpy_bloom.model.passes import Pass
from numpy_bloom.study.stages import stage_names

PROMPT = "Todos los seres humanos nacen"


def test_the_list_needs_no_model(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(trace, "load")
    result = command(trace, "--list")
    assert result.code == 0
    names = [line.split()[0] for line in result.out.splitlines()[1:]]
    assert [name.replace("*", "0") for name in names] == stage_names(1)


def test_every_stage_and_what_each_layer_would_say(command: Command) -> None:
    result = command(trace, PROMPT, "--check")
    assert result.code == 0
    assert (
        result.err
        == "each stage whose inputs are in the trace is what its formula gives, bit for bit\n"
    )
    stages, lens = result.out.split("\n\n")
    rows = {line.split()[0]: line.split()[1:] for line in stages.splitlines()[1:]}
    assert list(rows) == stage_names(4)
    with numpy_bloom.load() as bloom:
        logits, traced = bloom.trace(PROMPT)
        best = bloom.decode([int(logits[-1].argmax())])
    *shape, mean, deviation, least, most = rows["blocks.2.mlp_out"]
    array = traced["blocks.2.mlp_out"]
    assert "".join(shape) == "9x192"
    assert [float(x) for x in (mean, deviation, least, most)] == pytest.approx(
        [array.mean(), array.std(), array.min(), array.max()], rel=1e-3
    )
    assert lens.splitlines()[-1].split(maxsplit=2)[::2] == ["blocks.3", repr(best)]


def test_some_stages_into_a_folder(command: Command, tmp_path: Path) -> None:
    result = command(trace, PROMPT, "--names", "*.pattern,embed", "--folder", tmp_path / "trace")
    assert result.code == 0
    names = ["embed", *(f"blocks.{i}.attn.pattern" for i in range(4))]
    assert [line.split()[0] for line in result.out.splitlines()[1:]] == names
    assert sorted(path.stem for path in (tmp_path / "trace").iterdir()) == sorted(names)
    pattern = np.load(tmp_path / "trace" / "blocks.0.attn.pattern.npy")
    assert np.allclose(pattern.sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("options", [[], ["--check"]])
def test_a_page_for_a_browser(command: Command, tmp_path: Path, options: list[str]) -> None:
    """The folder gets every array, whatever the page shows."""
    page = tmp_path / "report.html"
    folder = tmp_path / "trace"
    result = command(trace, PROMPT, "--html", page, "--folder", folder, *options)
    assert result.code == 0
    assert len(list(folder.iterdir())) == 75
    assert f"{page} written\n" in result.err
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_stage_that_is_something_else_is_told(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    tap = Pass.tap

    def wrong(self: Pass, name: str, array: object, rows: object = None) -> object:
        if self.block == 1 and name == "attn.z":
            array = array * np.float32(1.5)  # type: ignore[operator]
        return tap(self, name, array, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(Pass, "tap", wrong)
    result = command(trace, PROMPT, "--check")
    assert result.code == 1
    assert result.err == (
        "trace: error: blocks.1.attn.z is not what its formula makes of the stages before it\n"
    )


def test_a_page_replaces_no_device_and_no_link(command: Command, tmp_path: Path) -> None:
    result = command(trace, PROMPT, "--html", tmp_path)
    assert result.code == 1
    assert result.err == f"trace: error: {tmp_path} is no regular file; choose another\n"
    (tmp_path / "link").symlink_to(tmp_path / "page")
    assert command(trace, PROMPT, "--html", tmp_path / "link").code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "page").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_numbers_that_are_not_finite_are_counted(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    tap = Pass.tap

    def damaged(self: Pass, name: str, array: object, rows: object = None) -> object:
        if self.block == 3 and name == "mlp_out":
            array = array * np.float32(np.inf)  # type: ignore[operator]
        return tap(self, name, array, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(Pass, "tap", damaged)
    result = command(trace, PROMPT, "--names", "blocks.3.mlp_out,blocks.3.attn.mask")
    assert result.code == 0
    assert result.out.splitlines()[-1].endswith(f"  {9 * 192} not finite")
    assert "not finite" not in result.out.splitlines()[-2]


def test_wrong_usage_and_bad_input(command: Command, tmp_path: Path) -> None:
    assert command(trace).code == 2
    assert command(trace, PROMPT, "--html", "page", "--names", "embed").code == 2
    check_failure(command(trace, PROMPT, "--names", "attn"), "trace", "no stage is called 'attn'")
    check_failure(command(trace, "", "--check"), "trace", "the prompt is empty")
    check_failure(command(trace, PROMPT, "--model", tmp_path), "trace", str(tmp_path))
    check_failure(command(trace, PROMPT, "--memory", "1MB"), "trace", "needs at least")
    (tmp_path / "embed.npy").touch()
    check_failure(command(trace, PROMPT, "--folder", tmp_path), "trace", "holds arrays already")
