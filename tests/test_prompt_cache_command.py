"""`generate --prompt-cache`, `--resume` and `--ignore-damaged-cache` as a user meets them."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import Checkpoint
from support.commands import Command, check_failure
from support.conversions import converted
from support.prompt_caches import ENDLESS, cut_off

import numpy_bloom
from numpy_bloom import generate

PROMPT = "Todos los"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(Checkpoint(**ENDLESS), tmp_path_factory.mktemp("kept"))


def printed(result: Any) -> dict[str, Any]:
    assert (result.code, result.err) == (0, "")
    content: dict[str, Any] = json.loads(result.out)
    return content


def leave(model: Path, file: Path, tokens: int, **options: Any) -> None:
    """Begin a text, and leave it after so many tokens."""
    with numpy_bloom.load(model) as bloom:
        cut_off(bloom, file, PROMPT, tokens, **options)


def test_resume(command: Command, model: Path, tmp_path: Path) -> None:
    file, options = tmp_path / "text", {"max_new_tokens": 20, "top_k": 50, "seed": 3}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    expected = printed(command(generate, PROMPT, "--model", model, "--json", *arguments))
    leave(model, file, 7, **options)
    resume = ["--resume", "--prompt-cache", file, "--model", model]
    result = command(generate, *resume)  # all of the text, though 7 tokens were there
    assert (result.code, result.out) == (0, expected["text"] + "\n")
    assert "20 new ones at" in result.err
    leave(model, file, 7, **options)
    resumed = printed(command(generate, *resume, "--json", *arguments, PROMPT))
    assert resumed.pop("stats")["passes"] == 13
    expected.pop("stats")
    assert resumed == expected
    ended = printed(command(generate, *resume, "--json"))
    assert ended.pop("stats")["passes"] == 0
    assert ended == expected
    lines = command(generate, *resume, "--show-tokens").out.splitlines()
    assert len(lines) == 20


def test_the_same_command_line_until_it_ends(command: Command, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "text"
    line = [PROMPT, "--model", model, "--prompt-cache", file, "--resume", "--max-new-tokens", 9]
    first = command(generate, *line)
    assert first.code == 0
    leave(model, file, 4, max_new_tokens=9)
    assert command(generate, *line).out == first.out


def test_a_second_run(command: Command, model: Path, tmp_path: Path) -> None:
    line = [PROMPT, "--model", model, "--max-new-tokens", 9, "--json"]
    expected = printed(command(generate, *line))
    for _ in range(2):
        found = printed(command(generate, *line, "--prompt-cache", tmp_path / "text"))
        assert found["token_ids"] == expected["token_ids"]


def test_options_that_contradict(command: Command, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "text"
    leave(model, file, 3, max_new_tokens=20, stop=["zzz"])
    resume = ["--resume", "--prompt-cache", file, "--model", model]
    for arguments, told, code in [
        (["--max-new-tokens", 128], "max_new_tokens is 128, but the text of", 2),
        (["--temperature", 1], "temperature is 1.0, but the text of", 2),
        (["--stop", "a"], "stop is ['a'], but the text of", 2),
        (["--draft-model", "prompt-lookup"], "draft_model is 'prompt-lookup', but the text of", 2),
        (["another"], f"{file} holds another prompt; leave this one out", 1),
    ]:
        check_failure(command(generate, *resume, *arguments), "generate", told, code)
    assert command(generate, *resume, "--max-new-tokens", 20, "--stop", "zzz").code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([PROMPT, "--resume"], "--resume and --ignore-damaged-cache need --prompt-cache"),
        ([PROMPT, "--ignore-damaged-cache"], "--ignore-damaged-cache need --prompt-cache"),
        ([PROMPT, "-n", "2", "--prompt-cache=f"], "does not go with --prompts-file or -n"),
        (["--prompts-file=p", "--prompt-cache=f"], "does not go with --prompts-file or -n"),
        (["--prompt-cache=f"], "give either PROMPT or --prompts-file"),
        ([PROMPT, "--num-beams=2", "--prompt-cache=f"], "does not go with --num-beams"),
        (["--num-beams=2", "--prompt-cache=f", "--resume"], "does not go with --num-beams"),
    ],
)
def test_wrong_usage(command: Command, arguments: list[str], told: str) -> None:
    result = command(generate, *arguments)
    assert (result.code, result.out) == (2, "")
    assert told in result.err.splitlines()[-1]


def test_damaged(command: Command, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "text"
    line = [PROMPT, "--model", model, "--prompt-cache", file, "--max-new-tokens", 9]
    expected = command(generate, *line).out
    file.write_bytes(file.read_bytes()[:-1])
    for arguments in (line, [*line[1:], "--resume"]):
        check_failure(command(generate, *arguments), "generate", f"{file} is damaged: it has ")
    assert command(generate, *line, "--ignore-damaged-cache").out == expected
    assert command(generate, *line).out == expected


def test_nothing_to_resume(command: Command, model: Path, tmp_path: Path) -> None:
    result = command(generate, "--resume", "--model", model, "--prompt-cache", tmp_path / "no")
    check_failure(result, "generate", f"cannot read {tmp_path / 'no'}: No such file or directory")
