"""The command `generate` with many prompts, samples of them, and guesses."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support.batches import Said, endless, said
from support.checkpoints import VOCAB_SIZE
from support.commands import Command, check_failure
from support.conversions import converted

import numpy_bloom
from numpy_bloom import generate

NEW = 6
PROMPTS = ["Todos los", "z", " 世界 con espacios ", "los seres humanos nacen libres", "z"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(endless(), tmp_path_factory.mktemp("prompts"))


def expected(model: Path, prompts: list[str], **options: Any) -> list[Said]:
    with numpy_bloom.load(model) as bloom:
        generations = bloom.generate_batch(prompts, **{"max_new_tokens": NEW, **options})
        for generation in generations:
            list(generation)
    return [said(generation) for generation in generations]


def run(command: Command, model: Path, *arguments: object) -> list[dict[str, Any]]:
    """The lines that the command prints."""
    result = command(generate, "--model", model, "--max-new-tokens", NEW, *arguments)
    assert (result.code, result.err) == (0, "")
    return [json.loads(line) for line in result.out.strip("\n").split("\n")]


def check(lines: list[dict[str, Any]], prompts: list[str], found: list[Said]) -> None:
    assert [line["prompt"] for line in lines] == prompts
    assert [(line["token_ids"], line["text"], line["finish_reason"]) for line in lines] == found
    for line in lines:
        assert line["stats"]["passes"] > 0


FILES = {
    "plain": "\n".join(PROMPTS) + "\n",
    "no line break at the end": "\n".join(PROMPTS),
    "carriage returns": "\r\n".join(PROMPTS) + "\r\n",
    "empty lines": "\n\n \n" + "\n\n".join(PROMPTS) + "\n\t\n",
    "JSON Lines": "\n".join(json.dumps({"prompt": prompt, "id": 5}) for prompt in PROMPTS),
    "byte order mark": "\ufeff" + "\n".join(PROMPTS),
    "JSON Lines with one": "\ufeff" + "\n".join(json.dumps({"prompt": p}) for p in PROMPTS),
    "JSON Lines with empty ones": "\n\n".join(
        "  " + json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in PROMPTS
    ),
}


@pytest.mark.parametrize("stdin", [False, True])
@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_prompts_of_a_file(
    command: Command,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str,
    stdin: bool,
) -> None:
    """In the order of the file."""
    (tmp_path / "prompts").write_bytes(content.encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode()), "ascii"))
    lines = run(command, model, "--prompts-file", "-" if stdin else tmp_path / "prompts")
    check(lines, PROMPTS, expected(model, PROMPTS))
    assert [line["prompt_token_ids"] for line in lines].count(lines[1]["prompt_token_ids"]) == 2


def test_prompts_with_line_breaks(command: Command, model: Path, tmp_path: Path) -> None:
    prompts = ["one\ntwo", '"\\']
    (tmp_path / "p").write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    check(run(command, model, "--prompts-file", tmp_path / "p"), prompts, expected(model, prompts))


@pytest.mark.parametrize("json_lines", [False, True])
def test_prompts_with_other_separators(
    command: Command, model: Path, tmp_path: Path, json_lines: bool
) -> None:
    prompts = ["one\u2028two", "three\x85four\x0cfive"]
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    content = "\n".join(lines if json_lines else prompts)
    (tmp_path / "p").write_text(content, encoding="utf-8")
    check(run(command, model, "--prompts-file", tmp_path / "p"), prompts, expected(model, prompts))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "{} holds no prompts; expected one a line"),
        (b"\n \n\r\n", "{} holds no prompts; expected one a line"),
        (b'{"prompt": "a"}\n\n{"prompt": "b"\n', "cannot read {}, line 3, as JSON: "),
        (
            b'{"prompt": "a"}\n{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
            "cannot read {}, line 2, as JSON: more than 20 objects and arrays in each other",
        ),
        (b'{"prompt": "a", "prompt": "b"}\n', "the key 'prompt' occurs twice in one object"),
        (b'{"prompt": "a"}\n{"text": "b"}\n', "{}, line 2 has no text as 'prompt'"),
        (b'{"prompt": 5}\n', "{}, line 1 has no text as 'prompt'"),
        (b'{"prompt": null}\n', "{}, line 1 has no text as 'prompt'"),
        (b'{"prompt": ["a"]}\n', "{}, line 1 has no text as 'prompt'"),
        (b'{"prompt": "a"}\n\n{"prompt": ""}\n', "{}, line 3 has an empty 'prompt'"),
        (b'\n{"prompt": "\\ud800"}\n', "{}, line 2 has a 'prompt' that is no valid Unicode"),
        (b"a\nb\xff\n", "cannot read {}: 'utf-8' codec can't decode byte 0xff"),
        (None, "cannot read {}: No such file or directory"),
    ],
)
def test_bad_files(
    command: Command, model: Path, tmp_path: Path, content: bytes | None, told: str
) -> None:
    path = tmp_path / "prompts"
    if content is not None:
        path.write_bytes(content)
    result = command(generate, "--model", model, "--prompts-file", path)
    check_failure(result, "generate", told.format(path))


def test_a_line_that_is_no_json_among_others(command: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "p").write_text('{"prompt": "a"}\n"prompt": "b"}\n{"prompt": "c"}\n')
    result = command(generate, "--model", model, "--prompts-file", tmp_path / "p")
    check_failure(result, "generate", "line 2, as JSON: ")


def test_a_folder_as_file(command: Command, model: Path, tmp_path: Path) -> None:
    result = command(generate, "--model", model, "--prompts-file", tmp_path)
    check_failure(result, "generate", f"cannot read {tmp_path}")


def test_stdin_that_is_not_utf_8(
    command: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff")))
    check_failure(command(generate, "--model", model, "--prompts-file=-"), "generate", "not UTF-8")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--prompts-file=p", "--show-tokens"], "--show-tokens does not go with --prompts-file"),
        (["a", "--draft-tokens=4"], "--draft-tokens needs --draft-model"),
    ],
)
def test_options_that_would_be_ignored(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p").write_text("a")
    check_failure(command(generate, *arguments), "generate", told, code=2)


# --- samples --------------------------------------------------------------------------------------

HOT = {"temperature": 2.0, "seed": 1}
HOT_ARGUMENTS = ["--temperature=2", "--seed=1"]


@pytest.mark.parametrize("option", [["-n", 3], ["--num-samples=3"]])
def test_samples_of_one_prompt(command: Command, model: Path, option: list[object]) -> None:
    found = expected(model, PROMPTS[:1], num_samples=3, **HOT)
    assert len({one.text for one in found}) == 3
    lines = run(command, model, PROMPTS[0], "--json", *HOT_ARGUMENTS, *option)
    check(lines, PROMPTS[:1] * 3, found)


def test_samples_as_text(command: Command, model: Path) -> None:
    found = expected(model, PROMPTS[:1], num_samples=2, **HOT)
    arguments = [PROMPTS[0], "--model", model, "--max-new-tokens", NEW, "-n2", *HOT_ARGUMENTS]
    result = command(generate, *arguments)
    assert (result.code, result.out) == (
        0,
        f"--- 1 of 2\n{found[0].text}\n--- 2 of 2\n{found[1].text}\n",
    )
    assert result.err.count("peak memory") == 2
    result = command(generate, *arguments, "--show-tokens")
    lines = result.out.split("\n")
    assert (lines[0], lines.count("--- 2 of 2")) == ("--- 1 of 2", 1)


def test_samples_of_each_prompt(command: Command, model: Path, tmp_path: Path) -> None:
    """Those of one prompt stand together."""
    (tmp_path / "p").write_text("\n".join(PROMPTS), encoding="utf-8")
    lines = run(command, model, "--prompts-file", tmp_path / "p", "-n", 2, *HOT_ARGUMENTS)
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    check(lines, prompts, expected(model, PROMPTS, num_samples=2, **HOT))


def test_samples_that_are_all_the_same(command: Command, model: Path) -> None:
    result = command(generate, PROMPTS[0], "--model", model, "-n", 2)
    check_failure(result, "generate", "num_samples is 2, but greedy samples are all", code=2)
    result = command(generate, PROMPTS[0], "--model", model, "-n", 0)
    check_failure(result, "generate", "num_samples is 0; expected a value in [1, inf)", code=2)


# --- guesses --------------------------------------------------------------------------------------


def test_prompt_lookup(command: Command, model: Path) -> None:
    prompt = "los libres, los libres, los "
    plain = run(command, model, prompt, "--json")
    lines = run(command, model, prompt, "--json", "--draft-model=prompt-lookup")
    check(lines, [prompt], expected(model, [prompt]))
    assert lines[0]["token_ids"] == plain[0]["token_ids"]


@pytest.mark.parametrize(("count", "passes"), [(1, 4), (5, 2)])
def test_a_draft_model(command: Command, model: Path, count: int, passes: int) -> None:
    """The model itself, whose guesses all hold; the pass over the prompt has none."""
    arguments = ["--draft-model", model, "--draft-tokens", count]
    lines = run(command, model, PROMPTS[0], "--json", *arguments)
    check(lines, PROMPTS[:1], expected(model, PROMPTS[:1]))
    assert lines[0]["stats"]["passes"] == passes
    assert lines[0]["stats"]["tokens_per_pass"] == NEW / passes
    result = command(generate, PROMPTS[0], "--model", model, f"--max-new-tokens={NEW}", *arguments)
    assert f", {NEW / passes:.2f} a pass; " in result.err


def test_draft_models_that_are_none(command: Command, model: Path, tmp_path: Path) -> None:
    start = [generate, PROMPTS[0], "--model", model, "--draft-model"]
    result = command(*start, "nonsense")
    check_failure(result, "generate", "nonsense is not a folder; expected a converted model")
    other = converted(endless(vocab=VOCAB_SIZE + 1), tmp_path)
    check_failure(command(*start, other), "generate", "the draft model has another vocabulary")
    result = command(*start, model, "--draft-tokens=0")
    check_failure(result, "generate", "draft_tokens is 0; expected a value in [1, inf)", code=2)
