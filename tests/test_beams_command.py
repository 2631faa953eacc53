"""Beam search from the command line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.beam_searches import RANDOM, found, needed
from support.checkpoints import Checkpoint
from support.commands import Command, check_failure
from support.conversions import converted

import numpy_bloom
from numpy_bloom import generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(Checkpoint(**RANDOM), tmp_path_factory.mktemp("command"))


ARGUMENTS = ("--num-beams", 3, "--max-new-tokens", 6)


def expected(folder: Path, prompt: str, **options: Any) -> Any:
    with numpy_bloom.load(folder) as model:
        return found(model, prompt, **{"num_beams": 3, "max_new_tokens": 6, **options})


def test_text(command: Command, folder: Path) -> None:
    result = command(generate, "Todos", "--model", folder, *ARGUMENTS)
    search = expected(folder, "Todos")
    assert (result.code, result.out) == (0, search.text + "\n")
    count, new = len(search.prompt_token_ids), len(search.token_ids)
    assert re.fullmatch(rf"{count} tokens in [\d.]+ s, then {new} new ones .*\n", result.err)


def test_json(command: Command, folder: Path) -> None:
    options = ("--length-penalty", -2.5, "--early-stopping", "--repetition-penalty", 1.5)
    result = command(generate, "Todos", "--model", folder, *ARGUMENTS, *options, "--json")
    search = expected(
        folder, "Todos", length_penalty=-2.5, early_stopping=True, repetition_penalty=1.5
    )
    assert (result.code, result.err) == (0, "")
    printed = json.loads(result.out)
    assert printed.pop("stats")["passes"] == search.stats.passes
    assert printed == {
        "prompt": "Todos",
        "prompt_token_ids": search.prompt_token_ids,
        "token_ids": search.token_ids,
        "text": search.text,
        "finish_reason": search.finish_reason,
        "score": search.score,
    }
    assert search.score != expected(folder, "Todos").score


def test_prompts_file(command: Command, folder: Path, tmp_path: Path) -> None:
    """One after the other, each with the memory that one needs."""
    prompts = ["Todos los", "a", "seres humanos"]
    file = tmp_path / "prompts"
    file.write_text("\n".join(prompts))
    with numpy_bloom.load(folder) as model:
        model.beam_search(prompts[2], num_beams=3, max_new_tokens=6)
        least = needed(model) + model.model.stream.nbytes
    arguments = (*ARGUMENTS, "--memory", least, "--prompts-file", file)
    result = command(generate, "--model", folder, *arguments)
    assert (result.code, result.err) == (0, "")
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    for line in lines:
        assert line["token_ids"] == expected(folder, line["prompt"]).token_ids


def test_show_tokens(command: Command, folder: Path) -> None:
    result = command(generate, "Todos", "--model", folder, *ARGUMENTS, "--show-tokens")
    assert result.code == 0
    assert len(result.out.splitlines()) == len(expected(folder, "Todos").token_ids)


@pytest.mark.parametrize(
    "option",
    [
        "--temperature=0.5",
        "--temperature=0",
        "--top-k=5",
        "--top-p=0.5",
        "--min-p=0.1",
        "--seed=0",
        "--num-samples=2",
        "--draft-model=prompt-lookup",
        "--draft-tokens=3",
    ],
)
def test_options_that_do_not_go_together(command: Command, folder: Path, option: str) -> None:
    result = command(generate, "Todos", "--model", folder, *ARGUMENTS, option)
    flag = option.partition("=")[0]
    check_failure(result, "generate", f"{flag} does not go with --num-beams", 2)


def test_options_that_need_beams(command: Command, folder: Path) -> None:
    for option in ("--early-stopping", "--length-penalty=0.5"):
        for beams_given in ((), ("--num-beams=1",)):
            result = command(generate, "Todos", "--model", folder, option, *beams_given)
            flag = option.partition("=")[0]
            check_failure(result, "generate", f"{flag} is for a beam search", 2)


def test_a_number_of_beams_out_of_range(command: Command, folder: Path) -> None:
    result = command(generate, "Todos", "--model", folder, "--num-beams", 0)
    check_failure(result, "generate", "num_beams is 0; expected a value in [1, inf), whole", 2)


def test_one_beam_is_no_search(command: Command, folder: Path) -> None:
    arguments = ("--model", folder, "--max-new-tokens", 6, "--repetition-penalty", 1.3)
    plain = command(generate, "Todos", *arguments)
    assert command(generate, "Todos", *arguments, "--num-beams", 1).out == plain.out
