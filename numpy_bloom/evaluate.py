"""Command: how well a model predicts a text. `python -m numpy_bloom.evaluate --help`"""

import argparse
import io
import json
import math
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from tqdm import tqdm

from numpy_bloom.bloom import Bloom
from numpy_bloom.command import CLUSTER_HELP, parser, path_argument, rate, run_command
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.inputs import token_id_array
from numpy_bloom.loading import load
from numpy_bloom.model.forward import TokenIds
from numpy_bloom.model.runner import Runner
from numpy_bloom.perplexity import WINDOW, Windows, check_window, score_windows, windows_per_pass
from numpy_bloom.progress import reading
from numpy_bloom.weights.budget import peak_memory_bytes, size_text

PIECE_CHARACTERS = 1 << 18
"""So much of a text is turned into tokens at a time: the tokenizer needs hundreds of bytes for each
token meanwhile."""

BOUNDARY = re.compile(r".*(?:\w(?= \w)|\n(?=\w))", re.DOTALL)
"""Up to the last place where BLOOM's tokenizer cuts a text before it looks for tokens: between a
word and the space before the next one, or between a line break and a word."""


@dataclass(frozen=True)
class Text:
    """A text, whose first token is not scored, for it has no context.

    Attributes:
        ids: (T,) int64.
        scored_bytes: UTF-8 bytes that all tokens but the first stand for.
    """

    ids: TokenIds
    scored_bytes: int


@dataclass(frozen=True)
class Stats:
    """What an evaluation took.

    Attributes:
        passes: passes over the weights.
        seconds: of all passes.
        tokens_per_second: tokens that were scored.
        weight_bytes_pinned: weights read into memory before the first pass.
        weight_bytes_read: weights read from disk by all passes together.
        peak_memory_bytes: largest resident memory of the process so far.
    """

    passes: int
    seconds: float
    tokens_per_second: float
    weight_bytes_pinned: int
    weight_bytes_read: int
    peak_memory_bytes: int


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    Attributes:
        perplexity: of a token: e to the power of the next.
        negative_log_likelihood: mean of the scored tokens, in nats.
        bits_per_byte: of the UTF-8 bytes that the scored tokens stand for.
        tokens, tokens_scored: of the text; all but the first.
        bytes_scored: UTF-8 bytes of those.
        windows: how many.
        window: tokens of each, at most.
        stride: tokens between their beginnings.
        stats: what it took.
    """

    perplexity: float
    negative_log_likelihood: float
    bits_per_byte: float
    tokens: int
    tokens_scored: int
    bytes_scored: int
    windows: int
    window: int
    stride: int
    stats: Stats


def main() -> None:
    """Parse, evaluate, print."""
    args = _parser().parse_args()
    check_window(args.window, args.stride)
    options = {"memory": args.memory, "threads": args.threads, "cluster": args.cluster}
    with load(args.model, **options) as bloom:
        text = read_text(bloom, args.text)
        windows = Windows(len(text.ids), args.window, args.stride)
        evaluation = evaluate(bloom.model, text, windows)
        if args.json:
            print(json.dumps(asdict(evaluation)))
        else:
            print(_table(evaluation))
            print(_statistics(bloom.model, evaluation), file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    command = parser(
        "numpy_bloom.evaluate",
        "Measure how well a BLOOM predicts a text: perplexity, and bits per byte. Each token is\n"
        "scored once, but for the first, which has no context: neither its probability nor its\n"
        "bytes count. Results go to stdout, statistics to stderr.",
        "python -m numpy_bloom.evaluate README.md --model bloom-560m --window 1024",
    )
    add = command.add_argument
    add(
        "text",
        type=path_argument,
        metavar="TEXTFILE",
        help="a text in UTF-8; - reads it from stdin",
    )
    add(
        "--model",
        type=path_argument,
        metavar="DIR",
        help="a converted model (default: the demo model)",
    )
    add(
        "--window",
        type=int,
        default=WINDOW,
        metavar="N",
        help="tokens that are seen at once, at most (default: %(default)s, as in BLOOM's training)",
    )
    add(
        "--stride",
        type=int,
        metavar="N",
        help="tokens from one window to the next; from the second window on, tokens have a context "
        "of at least the window less N (default: half the window)",
    )
    add(
        "--memory",
        metavar="SIZE",
        help="for weights, buffers, activations, such as 2GB (default: what is free)",
    )
    add("--threads", type=int, metavar="N", help="default: the cores available")
    add("--cluster", metavar="ADDRESS", help=CLUSTER_HELP)
    add("--json", action="store_true", help="one JSON object with results and statistics")
    return command


def read_text(bloom: Bloom, name: str) -> Text:
    """Read a file, or stdin if the name is `-`, and turn it into tokens.

    Raises:
        NumpyBloomError: it cannot be read or is not UTF-8, the model has no tokenizer, or one of
            the ids is not in its vocabulary.
    """
    shown = "stdin" if name == "-" else name
    parts, nbytes = [np.empty(0, dtype=np.int64)], 0
    try:
        with _open(name) as file:
            for piece in pieces(file):
                parts.append(np.array(bloom.encode(piece), dtype=np.int64))
                nbytes += len(piece.encode())
    except UnicodeDecodeError as error:
        raise NumpyBloomError(f"{shown} is not UTF-8: {error.reason}") from error
    except OSError as error:
        raise NumpyBloomError(f"cannot read {shown}: {error.strerror}") from error
    ids = np.concatenate(parts)
    if len(ids):
        ids = token_id_array(ids, bloom.config)
        assert bloom.tokenizer is not None
        # The vocabulary spells each byte as one character.
        nbytes -= len(bloom.tokenizer.id_to_token(int(ids[0])) or "")
    return Text(ids, nbytes)


def _open(name: str) -> TextIO:
    """The text, its line breaks as they are."""
    if name != "-":
        return Path(name).open(encoding="utf-8", newline="")
    if sys.stdin is None:
        raise NumpyBloomError("stdin is closed; expected a text there")
    return io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", newline="")


def pieces(file: TextIO) -> Iterator[str]:
    """Cut a text into pieces whose tokens together are those of the whole."""
    text = ""
    while new := file.read(PIECE_CHARACTERS):
        text += new
        if whole := BOUNDARY.match(text):
            yield whole[0]
            text = text[whole.end() :]
    if text:
        yield text


def evaluate(model: Runner, text: Text, windows: Windows) -> Evaluation:
    """Score a text, with a progress bar on a terminal.

    Raises:
        NumpyBloomError: there is too little memory, or the weights are damaged or cannot be read.
    """
    together = windows_per_pass(model, windows)
    passes = math.ceil(len(windows) / together)
    start, read, total = time.perf_counter(), model.bytes_read, 0.0
    with _progress(model, passes):
        for log_probabilities in score_windows(model, text.ids, windows, together):
            total -= float(log_probabilities.sum(dtype=np.float64))
    seconds = time.perf_counter() - start
    scored = len(text.ids) - 1
    mean = total / scored
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(mean))
    return Evaluation(
        perplexity=perplexity,
        negative_log_likelihood=mean,
        bits_per_byte=total / math.log(2) / text.scored_bytes,
        tokens=len(text.ids),
        tokens_scored=scored,
        bytes_scored=text.scored_bytes,
        windows=len(windows),
        window=windows.size,
        stride=windows.stride,
        stats=Stats(
            passes=passes,
            seconds=seconds,
            tokens_per_second=scored / seconds,
            weight_bytes_pinned=model.bytes_pinned,
            weight_bytes_read=model.bytes_read - read,
            peak_memory_bytes=peak_memory_bytes(),
        ),
    )


@contextmanager
def _progress(model: Runner, passes: int) -> Iterator[None]:
    """A bar of the weights that so many passes use, on stderr if that is a terminal."""
    total = passes * model.weight_bytes
    with tqdm(
        desc="evaluating", total=total, unit="B", unit_scale=True, leave=False, disable=None
    ) as bar:
        model.watch(lambda _name, nbytes: bar.update(nbytes))
        try:
            yield
        finally:
            model.watch(lambda _name, _nbytes: None)


def _table(e: Evaluation) -> str:
    rows = [
        ("perplexity", f"{e.perplexity:.4f}", "per token"),
        ("negative log-likelihood", f"{e.negative_log_likelihood:.6f}", "nats per token"),
        ("bits per byte", f"{e.bits_per_byte:.6f}", f"of the {e.bytes_scored} bytes scored"),
        ("tokens", f"{e.tokens}", f"of which {e.tokens_scored} scored; the first has no context"),
        ("windows", f"{e.windows}", f"of {e.window} tokens at most, {e.stride} apart"),
    ]
    return "\n".join(f"{name:<24}{value:>12}  {remark}" for name, value, remark in rows)


def _statistics(model: Runner, e: Evaluation) -> str:
    stats = e.stats
    return (
        f"{e.tokens_scored} tokens in {stats.passes} pass{'es' if stats.passes > 1 else ''} and "
        f"{stats.seconds:.2f} s, "
        f"{rate(stats.tokens_per_second)} a second; "
        f"{reading(model, stats.weight_bytes_read, stats.seconds)}"
        f"peak memory {size_text(stats.peak_memory_bytes)}"
    )


if __name__ == "__main__":
    sys.exit(run_command(main, "evaluate"))
