"""Command: continue a prompt. `python -m numpy_bloom.generate --help`"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from numpy_bloom.bloom import Bloom, load
from numpy_bloom.command import parser, rate, run_command, text_argument
from numpy_bloom.errors import NumpyBloomError, OptionError
from numpy_bloom.generation.beams import BeamSearch
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

BEAM_OPTIONS = ("length_penalty", "early_stopping")
"""Those that only `Bloom.beam_search` has."""

NOT_WITH_BEAMS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "num_samples",
    "draft_model",
    "draft_tokens",
    "prompt_cache",
)
"""Those that a beam search does not have."""


def main() -> None:
    """Parse, generate, print."""
    command = _parser()
    args = command.parse_args()
    _check_prompts(args, command)
    prompts = []
    if args.prompt is not None:
        prompts = [text_argument(args.prompt)]
    elif args.prompts_file is not None:
        prompts = read_prompts(text_file(args.prompts_file), args.prompts_file)
    options = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
    beam_options = _beam_options(args, command)
    with ExitStack() as models:

        def opened(folder: str | None) -> Bloom:
            return models.enter_context(load(folder, memory=args.memory, threads=args.threads))

        model = opened(args.model)
        if args.draft_model is not None:
            lookup = args.draft_model == PROMPT_LOOKUP
            options["draft_model"] = PROMPT_LOOKUP if lookup else opened(args.draft_model)
        generations: Iterable[Generation]
        if beam_options:
            generations = _beam_searches(model, prompts, {**options, **beam_options})
        elif args.prompt_cache is not None:
            generations = [_kept(model, prompts, args, options)]
            prompts = prompts or [model.decode(generations[0].prompt_token_ids)]
        else:
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


def _check_prompts(args: argparse.Namespace, command: argparse.ArgumentParser) -> None:
    if args.prompt_cache is None and (args.resume or args.ignore_damaged_cache):
        command.error("--resume and --ignore-damaged-cache need --prompt-cache")
    if args.prompt_cache is not None and (args.prompts_file is not None or args.num_samples != 1):
        command.error("--prompt-cache is for one text; it does not go with --prompts-file or -n")
    given = [text for text in (args.prompt, args.prompts_file) if text is not None]
    if len(given) != 1 and not (args.resume and not given):
        command.error("give either PROMPT or --prompts-file")


def _kept(
    model: Bloom, prompts: Sequence[str], args: argparse.Namespace, options: dict[str, Any]
) -> Generation:
    """A text that is kept in a file: it goes on if that is asked for, else it begins."""
    file, ignore = args.prompt_cache, args.ignore_damaged_cache
    # With a prompt the same command line can be repeated until it ends.
    if args.resume and (not prompts or Path(file).exists()):
        given = {name: value for name, value in options.items() if value != []}
        prompt = prompts[0] if prompts else None
        generation = model.resume(file, prompt=prompt, ignore_damaged_cache=ignore, **given)
    else:
        generation = model.generate(
            prompts[0], prompt_cache=file, ignore_damaged_cache=ignore, **options
        )
    if generation.finish_reason is None:
        _announce(model.model)
    return generation


def _beam_options(args: argparse.Namespace, command: argparse.ArgumentParser) -> dict[str, Any]:
    """What only a beam search is given; empty if there is to be none.

    Raises:
        OptionError: an option goes with a beam search only, or does not go with one.
    """
    searching = args.num_beams != 1
    for name in NOT_WITH_BEAMS if searching else BEAM_OPTIONS:
        if getattr(args, name) != command.get_default(name):
            flag = f"--{name.replace('_', '-')}"
            if searching:
                raise OptionError(f"{flag} does not go with --num-beams; give one of the two")
            raise OptionError(f"{flag} is for a beam search; give --num-beams too, above 1")
    return {name: getattr(args, name) for name in ("num_beams", *BEAM_OPTIONS) if searching}


def _beam_searches(
    model: Bloom, prompts: Sequence[str], options: dict[str, Any]
) -> Iterator[BeamSearch]:
    """One after the other, so that each has the memory to itself."""
    for number, prompt in enumerate(prompts):
        search = model.beam_search(prompt, **options)
        if number == 0:
            _announce(model.model)
        yield search


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
    """The prompts of a file: one a line or, if the first begins with `{`, JSON Lines with `prompt`.

    Empty lines are no prompts.

    Raises:
        NumpyBloomError: there is none, or a line of JSON has no `prompt`.
    """
    lines = {number: line for number, line in enumerate(text.split("\n"), 1) if line.strip()}
    if not lines:
        raise NumpyBloomError(f"{name} holds no prompts; expected one a line")
    if not next(iter(lines.values())).lstrip().startswith("{"):
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
    add("--max-new-tokens", type=int, metavar="N", help="default: 128")
    add("--temperature", type=float, metavar="F", help="0 is greedy (default, unless sampling)")
    add("--top-k", type=int, metavar="N", help="sample among the N likeliest tokens")
    add("--top-p", type=float, metavar="F", help="sample among the likeliest with this sum")
    add("--min-p", type=float, metavar="F", help="sample among tokens with this share of the best")
    add("--repetition-penalty", type=float, metavar="F", help="above 1: repeat less")
    add(
        "--num-beams",
        type=int,
        default=1,
        metavar="N",
        help="above 1: beam search, the likeliest of N texts that are followed at once",
    )
    add(
        "--length-penalty",
        type=float,
        default=1.0,
        metavar="F",
        help="of beams: above 0 favours long texts (default: %(default)s)",
    )
    add("--early-stopping", action="store_true", help="of beams: end when N texts have ended")
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
        "--prompt-cache",
        metavar="FILE",
        help="keep the text here after every pass; what it has in common with the text that is "
        "there is not computed again",
    )
    add("--resume", action="store_true", help="go on with the text in the prompt cache")
    add(
        "--ignore-damaged-cache",
        action="store_true",
        help="do without what is damaged of the prompt cache",
    )
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


def _print_json(prompts: Sequence[str], generations: Iterable[Generation]) -> None:
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
            **({"score": generation.score} if isinstance(generation, BeamSearch) else {}),
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
