"""`python -m numpy_bloom.evaluate`: what it measures, prints and refuses."""

import io
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import Checkpoint
from support.commands import Command, check_failure, set_stdin
from support.conversions import converted

import numpy_bloom
from numpy_bloom import evaluate, progress, text_file
from numpy_bloom.loading import DEMO

TEXT = 'Todos los seres humanos nacen libres: "世界" é\r\n\ntos, Todos los.\n' * 3

RESULTS = {
    "perplexity",
    "negative_log_likelihood",
    "bits_per_byte",
    "tokens",
    "tokens_scored",
    "bytes_scored",
    "windows",
    "window",
    "stride",
    "stats",
}
STATS = {
    "passes",
    "seconds",
    "tokens_per_second",
    "weight_bytes_pinned",
    "weight_bytes_read",
    "peak_memory_bytes",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(Checkpoint(lm_head="different"), tmp_path_factory.mktemp("model"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return path


def log_probabilities(model: Path, text: str) -> Any:
    """By `score`, of the whole text."""
    with numpy_bloom.load(model) as bloom:
        return bloom.score(bloom.encode(text)).astype(np.float64)


def test_help(command: Command) -> None:
    result = command(evaluate, "--help")
    assert (result.code, result.err) == (0, "")
    assert "\nexample: python -m numpy_bloom.evaluate README.md" in result.out


def test_json(command: Command, model: Path, text: Path) -> None:
    result = command(evaluate, text, "--model", model, "--json")
    assert (result.code, result.err) == (0, "")
    assert result.out.count("\n") == 1
    found = json.loads(result.out)
    assert set(found) == RESULTS
    assert set(found["stats"]) == STATS
    scores = log_probabilities(model, TEXT)
    assert found["negative_log_likelihood"] == pytest.approx(-scores.mean(), abs=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(-scores.mean()), rel=1e-5)
    first = len("T")  # the tokenizer has no longer token that "Todos" begins with
    assert found["bytes_scored"] == len(TEXT.encode()) - first
    bits = -scores.sum() / math.log(2) / (len(TEXT.encode()) - first)
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert found["tokens"] == len(scores) + 1
    assert found["tokens_scored"] == len(scores)
    assert (found["windows"], found["window"]) == (1, len(scores) + 1)
    assert found["stats"]["passes"] == 1


def test_windows(command: Command, model: Path, text: Path) -> None:
    """Each window is a text of its own, whose last tokens count."""
    arguments = ["--model", model, "--window=50", "--stride=20", "--json"]
    found = json.loads(command(evaluate, text, *arguments).out)
    with numpy_bloom.load(model) as bloom:
        ids = bloom.encode(TEXT)
        expected = bloom.score(ids[:50]).tolist()
        windows = 1
        while len(expected) < len(ids) - 1:
            scores = bloom.score(ids[20 * windows : 20 * windows + 50])
            expected += scores[29:].tolist()  # behind the 30 tokens that it shares
            windows += 1
    mean = -sum(expected) / len(expected)
    assert found["negative_log_likelihood"] == pytest.approx(mean, abs=1e-6)
    assert (found["windows"], found["window"], found["stride"]) == (windows, 50, 20)
    whole = json.loads(command(evaluate, text, "--model", model, "--json").out)
    assert abs(whole["negative_log_likelihood"] - mean) > 1e-3  # less context shows


def test_table_on_stdout_and_statistics_on_stderr(
    command: Command, model: Path, text: Path
) -> None:
    result = command(evaluate, text, "--model", model, "--window=50", "--stride=20")
    found = json.loads(
        command(evaluate, text, "--model", model, "--window=50", "--stride=20", "--json").out
    )
    assert result.code == 0
    lines = [re.split(r"\s\s+", line) for line in result.out.splitlines()]
    assert [line[0] for line in lines] == [
        "perplexity",
        "negative log-likelihood",
        "bits per byte",
        "tokens",
        "windows",
    ]
    values = [float(line[1]) for line in lines]
    names = ("perplexity", "negative_log_likelihood", "bits_per_byte", "tokens", "windows")
    assert values == pytest.approx([found[name] for name in names], rel=1e-4)
    assert lines[-1][2] == "of 50 tokens at most, 20 apart"
    told = rf"{found['tokens_scored']} tokens in 1 pass and [\d.]+ s, \S+ a second; "
    assert re.fullmatch(told + r"peak memory \S+ [MG]B\n", result.err)


def test_the_demo_model_knows_the_declaration(command: Command, tmp_path: Path) -> None:
    """And has never seen other texts."""
    languages = Path(__file__).parent / "reference" / "demo_languages.json"
    (tmp_path / "known").write_text(
        json.loads(languages.read_text("utf-8"))[-1]["article"], "utf-8"
    )
    known = json.loads(command(evaluate, tmp_path / "known", "--json").out)
    (tmp_path / "other").write_text(Path(evaluate.__file__).read_text()[:2000])
    other = json.loads(command(evaluate, tmp_path / "other", "--json", "--window=100").out)
    assert known["perplexity"] < 2
    assert other["perplexity"] > 100
    assert known["bits_per_byte"] < 1 < other["bits_per_byte"]


# --- the text -------------------------------------------------------------------------------------


def test_text_from_stdin(
    command: Command, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_stdin(monkeypatch, TEXT.encode())
    piped = json.loads(command(evaluate, "-", "--model", model, "--json").out)
    read = json.loads(command(evaluate, text, "--model", model, "--json").out)
    del piped["stats"], read["stats"]
    assert piped == read


@pytest.mark.parametrize("content", [b"a\xffb", b"ab\xe4\xb8", "é".encode("latin-1")])
@pytest.mark.parametrize("place", ["file", "stdin"])
def test_texts_that_are_no_utf_8(
    command: Command,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    place: str,
) -> None:
    name = tmp_path / "text" if place == "file" else "-"
    (tmp_path / "text").write_bytes(content)
    set_stdin(monkeypatch, content)
    told = f"{name if place == 'file' else 'stdin'} is not UTF-8: "
    check_failure(command(evaluate, name, "--model", model), "evaluate", told)


def test_texts_that_cannot_be_read(
    command: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = command(evaluate, tmp_path / "none", "--model", model)
    check_failure(result, "evaluate", f"cannot read {tmp_path / 'none'}: No such file")
    result = command(evaluate, tmp_path, "--model", model)
    check_failure(result, "evaluate", f"cannot read {tmp_path}: Is a directory")
    set_stdin(monkeypatch, None)
    check_failure(command(evaluate, "-", "--model", model), "evaluate", "stdin is closed")


@pytest.mark.parametrize(("content", "told"), [("", "0 tokens,"), ("a", "1 token,")])
def test_texts_that_are_too_short(
    command: Command, model: Path, tmp_path: Path, content: str, told: str
) -> None:
    (tmp_path / "text").write_text(content)
    result = command(evaluate, tmp_path / "text", "--model", model)
    check_failure(result, "evaluate", f"the text is too short: {told} expected at least two")


def test_two_tokens_are_enough(command: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("ab")
    found = json.loads(command(evaluate, tmp_path / "text", "--model", model, "--json").out)
    assert found["negative_log_likelihood"] == pytest.approx(-log_probabilities(model, "ab")[0])
    assert (found["tokens"], found["tokens_scored"], found["bytes_scored"]) == (2, 1, 1)
    assert (found["windows"], found["window"], found["stride"]) == (1, 2, 1)


def test_a_character_that_begins_with_the_token_that_is_not_scored(
    command: Command, model: Path, tmp_path: Path
) -> None:
    """Bytes are counted, not characters: the first token of three is one byte or two."""
    (tmp_path / "text").write_text("界a", "utf-8")
    found = json.loads(command(evaluate, tmp_path / "text", "--model", model, "--json").out)
    assert (found["tokens"], found["bytes_scored"]) == (4, 3)
    (tmp_path / "text").write_text("世a", "utf-8")  # whose first two bytes are a token
    found = json.loads(command(evaluate, tmp_path / "text", "--model", model, "--json").out)
    assert (found["tokens"], found["bytes_scored"]) == (3, 2)


def test_pieces_have_the_tokens_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(1)
    parts = [
        *"aab  \n\n\t.,!(|)éß世界。、_1\r'",
        "e\u0301",
        "\u00a0",
        "😀",
        "</s>",
        "Todos los",
        "  ",
    ]
    cut = 0
    with numpy_bloom.load(DEMO) as bloom:
        for _ in range(1000):
            whole = "".join(random.choices(parts, k=random.randrange(1, 60)))
            monkeypatch.setattr(text_file, "PIECE_CHARACTERS", random.randrange(1, 20))
            pieces = list(text_file.pieces(io.StringIO(whole, newline="")))
            assert "".join(pieces) == whole
            ids = [token for piece in pieces for token in bloom.encode(piece)]
            assert ids == bloom.encode(whole), pieces
            cut += len(pieces) > 2
    assert cut > 300


def test_a_large_text_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "PIECE_CHARACTERS", 1000)
    text = "".join(f"Todos los {number}\n" for number in range(10_000))
    sizes = [len(piece) for piece in text_file.pieces(io.StringIO(text))]
    assert max(sizes) <= 1020
    assert sum(sizes) == len(text)


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--window=1"], "window is 1; expected a value in [2, inf), whole"),
        (["--window=0", "--stride=5"], "window is 0"),
        (["--stride=0"], "stride is 0; expected a value in [1, 2047]"),
        (["--window=10", "--stride=10"], "stride is 10; expected a value in [1, 9]"),
        (["--window=10", "--stride=-3"], "stride is -3; expected a value in [1, 9]"),
        (["--threads=0"], "threads is 0"),
        (["--memory=much"], "memory is 'much'"),
    ],
)
def test_options_out_of_range(
    command: Command, model: Path, text: Path, arguments: list[str], told: str
) -> None:
    result = command(evaluate, text, "--model", model, *arguments)
    check_failure(result, "evaluate", told, code=2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [([], "required: TEXTFILE"), (["a", "--window=x"], "invalid int value: 'x'")],
)
def test_wrong_usage(command: Command, arguments: list[str], told: str) -> None:
    result = command(evaluate, *arguments)
    assert (result.code, result.out) == (2, "")
    assert told in result.err.splitlines()[-1]


def test_too_little_memory(command: Command, model: Path, text: Path) -> None:
    result = command(evaluate, text, "--model", model, "--memory=100KB")
    check_failure(result, "evaluate", "this run needs at least")


def test_a_bar_on_a_terminal(
    command: Command, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts the weights that all passes use, and ends when they do."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    bars = []

    class Bar(progress.tqdm):  # type: ignore[misc]
        def close(self) -> None:
            bars.append((self.n, self.total))
            super().close()

    terminal = Terminal()
    monkeypatch.setattr(progress, "tqdm", lambda **options: Bar(file=terminal, **options))
    monkeypatch.setattr(evaluate, "windows_per_pass", lambda _model, _windows: 2)
    arguments = ["--model", model, "--window=50", "--stride=20", "--json"]
    found = json.loads(command(evaluate, text, *arguments).out)
    passes, weights = (found["stats"][name] for name in ("passes", "weight_bytes_pinned"))
    assert passes == math.ceil(found["windows"] / 2) > 1
    assert set(bars) == {(passes * weights, passes * weights)}
    assert "evaluating" in terminal.getvalue()
