"""Command: continue a prompt. `python -m numpy_bloom.generate --help`"""

import argparse
import json
import math
import sys
import time
from dataclasses import asdict

from numpy_bloom.bloom import Bloom, load
from numpy_bloom.command import parser, rate, run_command, text_argument
from numpy_bloom.generation.loop import Generation
from numpy_bloom.model.model import Model
from numpy_bloom.progress import PassBar, forecast

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def main() -> None:
    """Parse, generate, print."""
    command = _parser()
    args = command.parse_args()
    prompt = text_argument(args.prompt)
    options = {name: value for name in SAMPLING if (value := getattr(args, name)) is not None}
    with load(args.model, memory=args.memory, threads=args.threads) as model:
        generation = model.generate(
            prompt, max_new_tokens=args.max_new_tokens, stop=args.stop, **options
        )
        _announce(model.model)
        if args.json:
            _print_json(prompt, generation)
        elif args.show_tokens:
            _print_tokens(model, generation)
        else:
            _print_text(generation)


def _parser() -> argparse.ArgumentParser:
    command = parser(
        "numpy_bloom.generate",
        "Continue a prompt with a BLOOM. The new text goes to stdout, statistics to stderr.",
        'python -m numpy_bloom.generate "Todos los seres humanos nacen" --max-new-tokens 20',
    )
    add = command.add_argument
    add("prompt", metavar="PROMPT", help="the text to continue; - reads it from stdin")
    add("--model", metavar="DIR", help="a converted model (default: the demo model)")
    add("--max-new-tokens", type=int, default=128, metavar="N", help="default: %(default)s")
    add("--temperature", type=float, metavar="F", help="0 is greedy (default, unless sampling)")
    add("--top-k", type=int, metavar="N", help="sample among the N likeliest tokens")
    add("--top-p", type=float, metavar="F", help="sample among the likeliest with this sum")
    add("--min-p", type=float, metavar="F", help="sample among tokens with this share of the best")
    add("--repetition-penalty", type=float, metavar="F", help="above 1: repeat less")
    add("--seed", type=int, metavar="N", help="makes sampling repeatable")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; repeatable")
    add(
        "--memory",
        metavar="SIZE",
        help="for weights, cache, buffers, such as 2GB (default: what is free)",
    )
    add("--threads", type=int, metavar="N", help="default: the cores available")
    form = command.add_mutually_exclusive_group().add_argument
    form("--json", action="store_true", help="one JSON object with tokens, text and statistics")
    form("--show-tokens", action="store_true", help="a line for each token: probability, seconds")
    return command


def _announce(model: Model) -> None:
    """Tell what a streamed run will take, and show its progress on a terminal."""
    text = forecast(model)
    if text:
        print(text, file=sys.stderr)
        if sys.stderr.isatty():
            model.stream.on_chunk = PassBar(model)


def _print_text(generation: Generation) -> None:
    for token in generation:
        print(token.text, end="", flush=True)
    print()
    _print_stats(generation)


def _print_tokens(model: Bloom, generation: Generation) -> None:
    """In the manner of the 2022 tutorial: `Token 1 ....... SELECT`."""
    start = time.perf_counter()
    for number, token in enumerate(generation, start=1):
        seconds = time.perf_counter() - start
        piece = model.decode([token.id])
        if "\ufffd" in piece:  # a part of a character: show the whole when it is there
            piece = token.text
        piece = repr(piece)[1:-1]  # a line break as \n
        probability = math.exp(token.logprob)
        print(f"Token {number} ....... {piece}  p={probability:.3f}  {seconds:.2f} s", flush=True)
        start = time.perf_counter()
    _print_stats(generation)


def _print_json(prompt: str, generation: Generation) -> None:
    for _ in generation:
        pass
    result = {
        "prompt": prompt,
        "prompt_token_ids": generation.prompt_token_ids,
        "token_ids": generation.token_ids,
        "text": generation.text,
        "finish_reason": generation.finish_reason,
        "stats": asdict(generation.stats),
    }
    print(json.dumps(result, ensure_ascii=False))


def _print_stats(generation: Generation) -> None:
    stats = generation.stats
    seconds = stats.prefill_seconds + stats.decode_seconds
    read = f"{stats.weight_bytes_read / 1e9:.2f} GB read at " if stats.weight_bytes_read else ""
    speed = f"{stats.weight_bytes_read / 1e9 / seconds:.2f} GB/s; " if read else ""
    print(
        f"{len(generation.prompt_token_ids)} tokens in {stats.prefill_seconds:.2f} s, then "
        f"{len(generation.token_ids)} new ones at {rate(stats.tokens_per_second)} a second; "
        f"{read}{speed}peak memory {stats.peak_memory_bytes / 1e6:.0f} MB",
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(run_command(main, "generate"))
