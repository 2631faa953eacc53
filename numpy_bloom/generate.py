"""Command: continue a prompt. `python -m numpy_bloom.generate --help`"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from numpy_bloom.bloom import Bloom, load
from numpy_bloom.command import parser, rate, run_command, text_argument
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.generation.drafts import PROMPT_LOOKUP
from numpy_bloom.generation.loop import Generation
from numpy_bloom.model.model import Model
from numpy_bloom.progress import PassBar, forecast

OPTIONS = (
    "max_new_tokens",
    "stop",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "seed",
    "draft_tokens",
)
"""Those that `Bloom.generate_batch` has under the same names."""


def main() -> None:
    """Parse, generate, print."""
    command = _parser()
    args = command.parse_args()
    if (args.prompt is None) == (args.prompts_file is None):
        command.error("give either PROMPT or --prompts-file")
    prompts = (
        [text_argument(args.prompt)]
        if args.prompts_file is None
        else read_prompts(text_file(args.prompts_file), args.prompts_file)
    )
    options = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
    with ExitStack() as models:

        def opened(folder: str | None) -> Bloom:
            return models.enter_context(load(folder, memory=args.memory, threads=args.threads))

        model = opened(args.model)
        if args.draft_model is not None:
            lookup = args.draft_model == PROMPT_LOOKUP
            options["draft_model"] = PROMPT_LOOKUP if lookup else opened(args.draft_model)
        generations = model.generate_batch(prompts, num_samples=args.num_samples, **options)
        _announce(model.model)
        if args.json or args.prompts_file is not None:
            _print_json([p for p in prompts for _ in range(args.num_samples)], generations)
        elif args.show_tokens:
            for generation in generations:
                _print_tokens(model, generation)
        else:
            for generation in generations:
                _print_text(generation)


def text_file(name: str) -> str:
    """What a text file holds, or stdin if the name is `-`.

    Raises:
        NumpyBloomError: it cannot be read, or is not UTF-8.
    """
    if name == "-":
        return text_argument("-")
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise NumpyBloomError(f"cannot read {name}: {error}") from error


def read_prompts(text: str, name: str) -> list[str]:
    """The prompts of a file: one a line, or JSON Lines with `prompt`. Empty lines are none.

    Raises:
        NumpyBloomError: there is none, or a line of JSON has no `prompt`.
    """
    lines = {number: line for number, line in enumerate(text.splitlines(), start=1) if line.strip()}
    if not lines:
        raise NumpyBloomError(f"{name} holds no prompts; expected one a line")
    if not all(line.lstrip().startswith("{") for line in lines.values()):
        return list(lines.values())
    prompts = []
    for number, line in lines.items():
        try:
            value: Any = json.loads(line)
        except ValueError as error:
            raise NumpyBloomError(f"{name}, line {number} is no JSON: {error}") from error
        if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
            raise NumpyBloomError(f"{name}, line {number} has no text as 'prompt'")
        prompts.append(value["prompt"])
    return prompts


def _parser() -> argparse.ArgumentParser:
    command = parser(
        "numpy_bloom.generate",
        "Continue a prompt with a BLOOM. The new text goes to stdout, statistics to stderr.",
        'python -m numpy_bloom.generate "Todos los seres humanos nacen" --max-new-tokens 20',
    )
    add = command.add_argument
    add("prompt", metavar="PROMPT", nargs="?", help="the text to continue; - reads it from stdin")
    add(
        "--prompts-file",
        metavar="F",
        help="many texts, continued together: one a line, or JSON Lines with prompt; - is stdin",
    )
    add(
        "-n",
        "--num-samples",
        type=int,
        default=1,
        metavar="K",
        help="continuations of each prompt (default: %(default)s)",
    )
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
        "--draft-model",
        metavar="DIR",
        help="a smaller model with the same vocabulary, held in memory, that guesses at tokens; or "
        "prompt-lookup: the text itself",
    )
    add("--draft-tokens", type=int, metavar="N", help="guesses for each pass, at most (default: 8)")
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


def _print_json(prompts: Sequence[str], generations: Sequence[Generation]) -> None:
    """A line for each prompt, in their order; on a terminal, progress as well."""
    for number, (prompt, generation) in enumerate(zip(prompts, generations, strict=True), start=1):
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
        print(json.dumps(result, ensure_ascii=False), flush=True)
        if len(prompts) > 1 and sys.stderr.isatty():
            new = len(generation.token_ids)
            told = f"{number} of {len(prompts)}: {new} tokens, {generation.finish_reason}"
            print(told, file=sys.stderr)


def _print_stats(generation: Generation) -> None:
    stats = generation.stats
    new = f"{len(generation.token_ids)} new ones at {rate(stats.tokens_per_second)} a second"
    if stats.tokens_per_pass > 1:
        new += f", {stats.tokens_per_pass:.2f} a pass"
    read = ""
    if stats.weight_bytes_read:
        speed = stats.weight_bytes_read / (stats.prefill_seconds + stats.decode_seconds)
        read = f"{stats.weight_bytes_read / 1e9:.2f} GB read at {speed / 1e9:.2f} GB/s; "
    print(
        f"{len(generation.prompt_token_ids)} tokens in {stats.prefill_seconds:.2f} s, then {new}; "
        f"{read}peak memory {stats.peak_memory_bytes / 1e6:.0f} MB",
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(run_command(main, "generate"))
