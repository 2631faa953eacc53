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

from numpy_bloom.bloom import Bloom
from numpy_bloom.command import rate, run_command, text_argument
from numpy_bloom.generate_options import BEAM_OPTIONS, OPTIONS, arguments
from numpy_bloom.generation.beams import BeamSearch
from numpy_bloom.generation.drafts import PROMPT_LOOKUP
from numpy_bloom.generation.generation import Generation
from numpy_bloom.loading import load
from numpy_bloom.progress import PassBar, reading
from numpy_bloom.prompts import read_prompts
from numpy_bloom.running.runner import Runner
from numpy_bloom.sizes import size_text


def main() -> None:
    """Parse, generate, print."""
    args = arguments()
    prompts = []
    if args.prompt is not None:
        prompts = [text_argument(args.prompt)]
    elif args.prompts_file is not None:
        prompts = read_prompts(args.prompts_file)
    options = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
    with ExitStack() as models:

        def opened(folder: str | None, cluster: str | None = None) -> Bloom:
            bloom = load(folder, memory=args.memory, threads=args.threads, cluster=cluster)
            return models.enter_context(bloom)

        model = opened(args.model, args.cluster)
        if args.draft_model is not None:
            lookup = args.draft_model == PROMPT_LOOKUP
            options["draft_model"] = PROMPT_LOOKUP if lookup else opened(args.draft_model)
        generations: Iterable[Generation]
        if args.num_beams != 1:
            options |= {name: getattr(args, name) for name in ("num_beams", *BEAM_OPTIONS)}
            generations = _beam_searches(model, prompts, options)
        elif args.prompt_cache is not None:
            generations = [_kept(model, prompts, args, options)]
            prompts = prompts or [model.decode(generations[0].prompt_token_ids)]
        else:
            generations = model.generate_batch(prompts, num_samples=args.num_samples, **options)
            _announce(model.model)
        if args.json or args.prompts_file is not None:
            _print_json([p for p in prompts for _ in range(args.num_samples)], generations)
        else:
            for number, generation in enumerate(generations, start=1):
                if args.num_samples > 1:
                    print(f"--- {number} of {args.num_samples}")
                if args.show_tokens:
                    _print_tokens(model, generation)
                else:
                    _print_text(model, generation)


def _kept(
    model: Bloom, prompts: Sequence[str], args: argparse.Namespace, options: dict[str, Any]
) -> Generation:
    """A text that is kept in a file: it goes on if that is asked for, else it begins."""
    file, ignore = args.prompt_cache, args.ignore_damaged_cache
    # With a prompt the same command line can be repeated until it ends.
    if args.resume and (not prompts or Path(file).exists()):
        prompt = prompts[0] if prompts else None
        generation = model.resume(file, prompt=prompt, ignore_damaged_cache=ignore, **options)
    else:
        generation = model.generate(
            prompts[0], prompt_cache=file, ignore_damaged_cache=ignore, **options
        )
    if generation.finish_reason is None:
        _announce(model.model)
    return generation


def _beam_searches(
    model: Bloom, prompts: Sequence[str], options: dict[str, Any]
) -> Iterator[BeamSearch]:
    """One after the other, so that each has the memory to itself."""
    for number, prompt in enumerate(prompts):
        search = model.beam_search(prompt, **options)
        if number == 0:
            _announce(model.model)
        yield search


def _announce(model: Runner) -> None:
    """Tell what a streamed run will take, and show its progress on a terminal."""
    text = model.forecast()
    if text:
        print(text, file=sys.stderr)
        if sys.stderr.isatty():
            model.watch(PassBar(model))


def _print_text(model: Bloom, generation: Generation) -> None:
    for token in generation:
        print(token.text, end="", flush=True)
    print()
    _print_stats(model, generation)


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
    _print_stats(model, generation)


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


def _print_stats(model: Bloom, generation: Generation) -> None:
    stats = generation.stats
    new = f"{len(generation.token_ids)} new ones"
    if stats.tokens_per_second:
        new += f" at {rate(stats.tokens_per_second)} a second"
    if stats.tokens_per_pass > 1:
        new += f", {stats.tokens_per_pass:.2f} a pass"
    seconds = stats.prefill_seconds + stats.decode_seconds
    read = reading(model.model, stats.weight_bytes_read, seconds)
    print(
        f"{len(generation.prompt_token_ids)} tokens in {stats.prefill_seconds:.2f} s, then {new}; "
        f"{read}peak memory {size_text(stats.peak_memory_bytes)}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(run_command(main, "generate"))
