"""The commands as a user meets them: what they print where, and how they end."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import Checkpoint
from support.commands import Command, Result, check_failure, set_stdin
from support.conversions import converted

import numpy_bloom
from conversion import __main__ as conversion_command
from conversion import export, split, verify
from numpy_bloom import benchmark, evaluate, generate, trace

ROOT = Path(__file__).parent.parent
PROMPT = "Todos los"
ENDLESS = Checkpoint(lm_head="different", config={"eos_token_id": None})
"""It never ends a text by itself."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(ENDLESS, tmp_path_factory.mktemp("endless"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return ENDLESS.write(tmp_path / "source")


def expected(model: Path, prompt: str, **options: Any) -> Any:
    """The generation that the command should show."""
    with numpy_bloom.load(model) as bloom:
        generation = bloom.generate(prompt, **options)
        list(generation)
    return generation


@pytest.mark.parametrize(
    ("module", "example"),
    [
        (generate, 'python -m numpy_bloom.generate "Todos los'),
        (benchmark, "python -m numpy_bloom.benchmark --model bloom-560m"),
        (conversion_command, "python -m conversion bigscience/bloom-560m"),
    ],
)
def test_help(command: Command, module: Any, example: str) -> None:
    result = command(module, "--help")
    assert (result.code, result.err) == (0, "")
    assert f"\nexample: {example}" in result.out


def test_text_on_stdout_and_statistics_on_stderr(command: Command, model: Path) -> None:
    result = command(generate, PROMPT, "--model", model, "--max-new-tokens", 8)
    assert (result.code, result.out) == (
        0,
        expected(model, PROMPT, max_new_tokens=8).text + "\n",
    )
    count = len(expected(model, PROMPT, max_new_tokens=1).prompt_token_ids)
    rates = rf"{count} tokens in [\d.]+ s, then 8 new ones at [\d,.]+ a second; "
    assert re.fullmatch(rates + r"peak memory \S+ [MG]B\n", result.err)


def test_json(command: Command, model: Path) -> None:
    prompt = 'Todos "世界"\n'
    result = command(generate, prompt, "--model", model, "--max-new-tokens", 5, "--json")
    assert (result.code, result.err) == (0, "")
    assert result.out.count("\n") == 1
    assert "世界" in result.out
    printed = json.loads(result.out)
    generation = expected(model, prompt, max_new_tokens=5)
    stats = printed.pop("stats")
    assert printed == {
        "prompt": prompt,
        "prompt_token_ids": generation.prompt_token_ids,
        "token_ids": generation.token_ids,
        "text": generation.text,
        "finish_reason": "length",
    }
    assert set(stats) == {
        "passes",
        "tokens_per_pass",
        "prefill_seconds",
        "decode_seconds",
        "tokens_per_second",
        "weight_bytes_pinned",
        "weight_bytes_read",
        "peak_memory_bytes",
    }
    assert (stats["passes"], stats["tokens_per_pass"]) == (5, 1)


def test_show_tokens(command: Command, model: Path) -> None:
    result = command(generate, PROMPT, "--model", model, "--max-new-tokens", 4, "--show-tokens")
    assert result.code == 0
    lines = result.out.splitlines()
    with numpy_bloom.load(model) as bloom:
        tokens = list(bloom.generate(PROMPT, max_new_tokens=4))
        pieces = [bloom.decode([token.id]) for token in tokens]
    assert len(lines) == len(pieces)
    for number, (line, token, piece) in enumerate(zip(lines, tokens, pieces, strict=True), start=1):
        # A part of a character is shown when it is whole.
        shown = re.escape(repr(token.text if "\ufffd" in piece else piece)[1:-1])
        pattern = rf"Token {number} \.{{7}} {shown}  p=[01]\.\d{{3}}  \d+\.\d\d s"
        assert re.fullmatch(pattern, line)
    assert "4 new ones" in result.err


SAMPLING = [
    {"temperature": 3.0, "seed": 1},
    {"top_k": 100, "seed": 2},
    {"top_p": 0.95, "seed": 3},
    {"min_p": 0.01, "seed": 4},
    {"repetition_penalty": 1e9},
]


@pytest.mark.parametrize("options", SAMPLING)
def test_options_reach_the_model(command: Command, model: Path, options: dict[str, Any]) -> None:
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    result = command(
        generate, PROMPT, "--model", model, "--max-new-tokens=20", "--json", *arguments
    )
    found = json.loads(result.out)["token_ids"]
    assert found == expected(model, PROMPT, max_new_tokens=20, **options).token_ids
    assert found != expected(model, PROMPT, max_new_tokens=20).token_ids


def test_stop_texts(command: Command, model: Path) -> None:
    text = expected(model, PROMPT, max_new_tokens=20).text
    stop = next(letter for letter in text[5:] if letter.isascii())
    result = command(generate, PROMPT, "--model", model, "--json", "--stop=zzz", "--stop", stop)
    found = json.loads(result.out)
    assert found["finish_reason"] == "stop"
    assert found["text"] == text[: text.index(stop)]


def test_prompt_from_stdin(command: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_stdin(monkeypatch, "Todos, 世界\nlos\n\n".encode())
    result = command(generate, "-", "--model", model, "--max-new-tokens", 2, "--json")
    assert json.loads(result.out)["prompt"] == "Todos, 世界\nlos\n"


@pytest.mark.parametrize(
    ("prompt", "stdin", "told"),
    [
        ("-", b"a\xff", "not UTF-8"),
        ("-", None, "stdin is closed"),
        ("-", b"", "prompt is empty"),
        ("", b"", "prompt is empty"),
        ("a\udcff", b"", "not UTF-8"),  # how Python passes on a byte that is none
    ],
)
def test_bad_prompts(
    command: Command,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    prompt: str,
    stdin: bytes | None,
    told: str,
) -> None:
    set_stdin(monkeypatch, stdin)
    check_failure(command(generate, prompt, "--model", model), "generate", told)


OUT_OF_RANGE = [
    ("--max-new-tokens=0", "max_new_tokens is 0; expected a value in [1, inf), whole"),
    ("--temperature=-1", "temperature is -1.0; expected a value in [0, inf)"),
    ("--temperature=nan", "temperature is nan; expected a value in [0, inf)"),
    ("--top-k=0", "top_k is 0; expected a value in [1, inf), whole"),
    ("--top-p=0", "top_p is 0.0; expected a value in (0, 1]"),
    ("--min-p=1.5", "min_p is 1.5; expected a value in [0, 1]"),
    ("--repetition-penalty=0", "repetition_penalty is 0.0; expected a value in (0, inf)"),
    ("--seed=-1", "seed is -1; expected a value in [0, inf), whole"),
    ("--threads=0", "threads is 0; expected a value in [1, inf), whole"),
    ("--memory=much", "memory is 'much'; expected a size such as"),
    (f"--memory={'9' * 400}", "memory is '999"),
    (f"--threads={'9' * 400}", f"threads is {'9' * 60}...; expected at most 1,000,000,000,000"),
    ("--max-new-tokens=9999999999999", "max_new_tokens is 9999999999999; expected at most"),
    ("--num-samples=10001", "num_samples is 10001; expected at most 10,000"),
    ("--num-beams=10001", "num_beams is 10001; expected at most 10,000"),
    ("--stop=", "stop text is empty"),
]


@pytest.mark.parametrize(("argument", "told"), OUT_OF_RANGE)
def test_options_out_of_range(command: Command, model: Path, argument: str, told: str) -> None:
    result = command(generate, PROMPT, "--model", model, argument)
    check_failure(result, "generate", told, code=2)


WRONG_USAGE: list[tuple[Any, list[str], str]] = [
    (generate, [], "give either PROMPT or --prompts-file"),
    (generate, [PROMPT, "--prompts-file=f"], "give either PROMPT or --prompts-file"),
    (generate, [PROMPT, "--max-new-tokens=many"], "invalid int value: 'many'"),
    (generate, [PROMPT, "--max-new=5"], "unrecognized arguments: --max-new=5"),
    (generate, [PROMPT, "--json", "--show-tokens"], "not allowed with"),
    (benchmark, ["--new-tokens=0"], "new_tokens is 0; expected a value in [1, inf), whole"),
    (conversion_command, ["source"], "required: TARGET"),
    (conversion_command, ["source", "target", "--dtype=int3"], "invalid choice: 'int3'"),
    (conversion_command, ["source", "target", "--head-dtype=int3"], "invalid choice: 'int3'"),
]


@pytest.mark.parametrize(("module", "arguments", "told"), WRONG_USAGE)
def test_wrong_usage(command: Command, module: Any, arguments: list[str], told: str) -> None:
    result = command(module, *arguments)
    assert (result.code, result.out) == (2, "")
    assert told in result.err.splitlines()[-1]


def check_converted(result: Result) -> None:
    """Nothing is told but the plan."""
    assert result.code == 0 and result.out == ""
    assert re.fullmatch(
        r"conversion: reads .* KB, writes .* KB; needs .* KB of disk, of .* free, "
        r"and at most 150 MB of memory\n",
        result.err,
    )


def test_conversion(command: Command, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    check_converted(command(conversion_command, source, target, "--dtype", "bfloat16"))
    assert json.loads((target / "manifest.json").read_text())["dtype"] == "bfloat16"
    told = f"{target} exists; give --overwrite"
    check_failure(command(conversion_command, source, target), "conversion", told)
    check_converted(command(conversion_command, source, target, "--overwrite"))
    assert json.loads((target / "manifest.json").read_text())["dtype"] == "float32"


def test_conversion_with_two_dtypes(command: Command, source: Path, tmp_path: Path) -> None:
    options = ["--dtype", "int4", "--head-dtype", "bfloat16"]
    check_converted(command(conversion_command, source, tmp_path / "t", *options))
    told = json.loads((tmp_path / "t/manifest.json").read_text())
    assert (told["dtype"], told["head_dtype"]) == ("int4", "bfloat16")


def test_conversion_that_fails(command: Command, source: Path, tmp_path: Path) -> None:
    result = command(conversion_command, source, source / "config.json" / "model")
    check_failure(result, "conversion", "cannot write")
    result = command(conversion_command, "a/b/c", tmp_path / "model")
    check_failure(result, "conversion", "a/b/c is neither a folder nor a name on the hub")
    assert list(tmp_path.iterdir()) == [source]


def test_folders_that_are_no_model(command: Command, source: Path, tmp_path: Path) -> None:
    """Every other damage of a model is told in the same way; see test_bad_models."""
    result = command(generate, PROMPT, "--model", tmp_path / "nowhere")
    check_failure(result, "generate", "nowhere is not a folder; expected a converted model")
    result = command(generate, PROMPT, "--model", source)
    check_failure(
        result,
        "generate",
        f"convert a Hugging Face checkpoint with: python -m conversion {source} TARGET",
    )


OUT_OF_MEMORY = (
    "conversion: error: out of memory; free some, or give --memory and --threads less where there "
    "are such options. {}\n"
)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "\nconversion: interrupted\n"),
        (MemoryError("8 GiB"), 1, OUT_OF_MEMORY.format("8 GiB")),
        (RuntimeError("can't start new thread"), 1, OUT_OF_MEMORY.format("can't start new thread")),
        (OSError("two\nlines"), 1, "conversion: error: two lines\n"),
    ],
)
def test_ends(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, told: str
) -> None:
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise error

    monkeypatch.setattr(conversion_command, "convert", fail)
    assert command(conversion_command, "a", "b") == Result(code, "", told)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (conversion_command, ("", "model")),
        (conversion_command, ("source", "")),
        (verify, ("",)),
        (export, ("", "hf")),
        (export, ("model", "")),
        (split, ("", "--parts=2")),
        (generate, (PROMPT, "--model=")),
        (generate, (PROMPT, "--draft-model=")),
        (generate, (PROMPT, "--prompt-cache=")),
        (generate, ("--prompts-file=",)),
        (evaluate, ("",)),
        (evaluate, ("README.md", "--model=")),
        (benchmark, ("--model=",)),
        (trace, (PROMPT, "--model=")),
        (trace, (PROMPT, "--folder=")),
        (trace, (PROMPT, "--html=")),
    ],
)
def test_an_empty_path_is_wrong_usage(
    command: Command, module: Any, arguments: tuple[str, ...]
) -> None:
    """It would be the current folder."""
    result = command(module, *arguments)
    assert result.code == 2
    assert result.err.endswith(": is '', expected a path\n")
