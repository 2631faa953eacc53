"""Command: how well a model predicts a text. `python -m numpy_bloom.evaluate --help`"""

import argparse
import json
import math
import sys
from dataclasses import asdict

from numpy_bloom.command import add_model_options, parser, path_argument, rate, run_command
from numpy_bloom.loading import load
from numpy_bloom.perplexity import (
    WINDOW,
    Evaluation,
    Windows,
    check_window,
    evaluate,
    windows_per_pass,
)
from numpy_bloom.progress import reading, run_bar
from numpy_bloom.running.runner import Runner
from numpy_bloom.sizes import size_text
from numpy_bloom.text_file import read_text


def main() -> None:
    """Parse, evaluate, print."""
    args = _parser().parse_args()
    check_window(args.window, args.stride)
    options = {"memory": args.memory, "threads": args.threads, "cluster": args.cluster}
    with load(args.model, **options) as bloom:
        text = read_text(bloom, args.text)
        windows = Windows(len(text.ids), args.window, args.stride)
        together = windows_per_pass(bloom.model, windows)
        with run_bar(bloom.model, "evaluating", math.ceil(len(windows) / together)):
            evaluation = evaluate(bloom.model, text, windows, together)
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
    add_model_options(command, cluster=True)
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
    add("--json", action="store_true", help="one JSON object with results and statistics")
    return command


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
