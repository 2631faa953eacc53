"""What several tokens for each pass over the weights gain: batches and guesses, against one by one.

    python benchmarks/several.py bloom-560m                  everything in memory
    python benchmarks/several.py bloom-560m --memory 700MB   streamed; cold, as root

Batches: 16 prompts of 20 to 200 tokens and 32 new tokens each, together, and one of them alone.
With --memory, alone gets less by what the keys and values of the others take: both stream the same
weights. Guesses: `prompt-lookup` on a prompt that ends as it began. In pairs, in one run; medians
of their ratios.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import describe
from memory_group import can_drop_page_cache, disk_group, drop_page_cache
from report import markdown, tell

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.model.cache import KVCache
from numpy_bloom.model.config import read_config
from numpy_bloom.sizes import parse_size

PROMPTS, NEW_TOKENS = 16, 32


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=Path)
    add("--memory", metavar="SIZE", help="the dial (default: what is free)")
    add("--disk-rate", metavar="SIZE", help="hold to so much a second, such as 1GB; needs root")
    add("--repeats", type=int, default=5, metavar="N", help="pairs (default: %(default)s)")
    add("--out", type=Path, default=Path("results"), help="default: %(default)s")
    args = parser.parse_args()
    if args.disk_rate:
        with disk_group(args.model, parse_size(args.disk_rate)):
            measure(args)
    else:
        measure(args)


def measure(args: argparse.Namespace) -> None:
    """Time all pairs."""
    random = np.random.default_rng(0)
    config = read_config(args.model)
    lengths = np.linspace(20, 200, PROMPTS).astype(int)
    prompts = [random.integers(3, config.vocab_size, length) for length in lengths]
    middle = prompts[PROMPTS // 2]
    repeating = np.tile(random.integers(3, config.vocab_size, 8), 12)
    memory = memory_alone = parse_size(args.memory) if args.memory else None
    if memory:
        others = lengths.sum() - len(middle) + (PROMPTS - 1) * NEW_TOKENS
        memory_alone = memory - KVCache.nbytes(config, int(others))
    with (
        numpy_bloom.load(args.model, memory=memory) as together,
        numpy_bloom.load(args.model, memory=memory_alone) as alone_model,
    ):
        pairs = {
            "batch of 16": (lambda: run(together, prompts), lambda: run(alone_model, [middle])),
            "prompt-lookup": (
                lambda: run(alone_model, [repeating], draft_model="prompt-lookup"),
                lambda: run(alone_model, [repeating]),
            ),
        }
        lines = [
            (
                "",
                "tokens/pass",
                "s/pass",
                "alone",
                "ratio",
                "tokens/s, ratio",
                "GB/pass",
                "alone",
                "same tokens",
            )
        ]
        everything = {}
        for name, (several, one) in pairs.items():
            runs = [alternately(number, several, one) for number in range(args.repeats)]
            everything[name] = runs
            last, alone = runs[-1]
            slower = statistics.median(a["pass_seconds"] / b["pass_seconds"] for a, b in runs)
            gain = statistics.median(a["rate"] / b["rate"] for a, b in runs)
            middle_ids = last["ids"][len(last["ids"]) // 2]
            lines.append(
                (
                    name,
                    f"{last['tokens_per_pass']:.2f}",
                    f"{statistics.median(a['pass_seconds'] for a, _ in runs):.3f}",
                    f"{statistics.median(b['pass_seconds'] for _, b in runs):.3f}",
                    f"{slower:.2f}",
                    f"{gain:.2f}",
                    f"{last['bytes_per_pass'] / 1e9:.3f}",
                    f"{alone['bytes_per_pass'] / 1e9:.3f}",
                    "yes" if middle_ids == alone["ids"][0] else "no",
                )
            )
    result = {"machine": describe(), "memory": args.memory, "disk_rate": args.disk_rate}
    tell(result | {"runs": everything}, markdown(lines), args.out / "several.json")


def alternately(
    number: int, several: Callable[[], dict], one: Callable[[], dict]
) -> tuple[dict, dict]:
    """One pair; who goes first alternates."""
    if number % 2:
        b, a = one(), several()
    else:
        a, b = several(), one()
    print(
        f"pair {number + 1}: {a['pass_seconds']:.3f} and {b['pass_seconds']:.3f} s a pass, "
        f"{a['rate']:.1f} and {b['rate']:.1f} tokens/s",
        file=sys.stderr,
    )
    return a, b


def run(model: Bloom, prompts: list[np.ndarray], **options: str) -> dict:
    """Continue prompts. A pass is one of the last prompt to join, after its first: then all have
    joined, and most are there still."""
    if can_drop_page_cache():
        drop_page_cache()
    read = model.model.stream.bytes_read
    generations = model.generate_batch(prompts, max_new_tokens=NEW_TOKENS, **options)
    for generation in generations:
        for _ in generation:
            pass
    passes = generations[-1]._continuation.passes[1:]
    seconds = statistics.median(one.seconds for one in passes)
    tokens_per_pass = len(prompts) * (NEW_TOKENS - 1) / len(passes)
    return {
        "ids": [generation.token_ids for generation in generations],
        "tokens_per_pass": tokens_per_pass,
        "pass_seconds": seconds,
        "rate": tokens_per_pass / seconds,
        "bytes_per_pass": statistics.median(one.bytes_read for one in passes),
        "bytes_read": model.model.stream.bytes_read - read,
    }


if __name__ == "__main__":
    main()
