"""Measure this project against its peers, on one machine, in one run, on the same weights.

    python benchmarks/compare.py resident peers-560m     everything in memory
    python benchmarks/compare.py streamed peers-560m     larger than memory, cold; needs root
    python benchmarks/compare.py memory peers-560m       ours, against the memory dial
    python benchmarks/compare.py tokens peers-560m       a pass, against the tokens in it

The folder is one that `prepare.py` filled. A table goes to stdout; results/MODE.json has every
single time; the last two are also drawn, as results/MODE.svg.
"""

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from engines import ENGINES, OURS
from machine import describe
from memory_group import can_drop_page_cache, can_limit
from pairs import Setting, run_pairs, summarize, table
from sweeps import memory_sweep, memory_table, tokens_sweep, tokens_table
from worker import EngineError

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.budget import default_threads, parse_size
from numpy_bloom.weights.folder import read_json

PEERS = {
    "resident": ("transformers-bfloat16", "transformers-float32", "llama.cpp"),
    "streamed": ("llama.cpp", "accelerate-disk", "tutorial"),
    "tokens": (OURS, "transformers-bfloat16", "transformers-float32", "llama.cpp"),
    "memory": (),
}
PROMPT_TOKENS = {"resident": 128, "streamed": 16, "memory": 16, "tokens": 128}
NEW_TOKENS = {"resident": 17, "streamed": 5, "memory": 5, "tokens": 1}


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("mode", choices=PEERS)
    add("prepared", type=Path)
    add("--engines", metavar="A,B", help=f"peers, of {', '.join(ENGINES)}")
    add("--repeats", type=int, default=5, metavar="N", help="pairs or rounds (default: 5)")
    add("--prompt-tokens", type=int, metavar="N", help=f"default: {PROMPT_TOKENS}")
    add("--new-tokens", type=int, metavar="N", help=f"default: {NEW_TOKENS}")
    add("--threads", type=int, default=default_threads(), metavar="N", help="of every engine")
    add("--memory", default="500MB", help="streamed: our dial (default: %(default)s)")
    add("--group", default="700MB", help="streamed: the memory group (default: %(default)s)")
    add("--sizes", default="200MB,300MB,500MB,750MB,1GB,1.25GB,all", help="memory: the dial")
    add("--counts", default="1,2,4,8,16,32,64,128", help="tokens: in the pass")
    add("--out", type=Path, default=Path("results"), help="default: %(default)s")
    args = parser.parse_args()
    args.engines = args.engines.split(",") if args.engines else PEERS[args.mode]
    unknown = [name for name in args.engines if name not in ENGINES]
    if unknown:
        parser.error(f"unknown engines: {', '.join(unknown)}")
    args.prompt_tokens = args.prompt_tokens or PROMPT_TOKENS[args.mode]
    args.new_tokens = args.new_tokens or NEW_TOKENS[args.mode]

    config = read_json(args.prepared / OURS / "config.json")
    result: dict[str, Any] = {
        "mode": args.mode,
        "machine": describe(),
        "model": f"BLOOM, {config['n_layer']} blocks, hidden size {config['hidden_size']}",
        "threads": args.threads,
        "prompt_tokens": args.prompt_tokens,
        "new_tokens": args.new_tokens,
    }
    random = np.random.default_rng(0)
    prompt = random.integers(3, config["vocab_size"], args.prompt_tokens).tolist()
    measure = {"memory": _memory, "tokens": _tokens}.get(args.mode, _pairs)
    text, measured = measure(args, prompt)
    result |= measured

    args.out.mkdir(exist_ok=True)
    target = args.out / f"{args.mode}.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(f"{key}: {value}" for key, value in result["machine"].items()))
    print(
        f"model: {result['model']}; prompt of {args.prompt_tokens} tokens, "
        f"{args.new_tokens} new; {args.threads} threads\n\n{text}"
    )
    if "rows" in result and find_spec("matplotlib"):
        from plots import draw  # noqa: PLC0415  (not everybody has matplotlib)

        print(f"{draw(target)} written", file=sys.stderr)


Measured = tuple[str, dict[str, Any]]
"""A table for people, and what goes into the JSON file."""


def _pairs(args: argparse.Namespace, prompt: list[int]) -> Measured:
    streamed = args.mode == "streamed"
    cold, limited = streamed and can_drop_page_cache(), streamed and can_limit()
    if streamed and not (cold and limited):
        print(f"without root: cold page cache {cold}, memory group {limited}", file=sys.stderr)
    setting = Setting(
        args.prepared,
        args.threads,
        args.repeats,
        prompt,
        args.new_tokens,
        memory=args.memory if streamed else None,
        group_bytes=parse_size(args.group) if limited else None,
        cold=cold,
    )
    before = _limits(setting)
    result = run_pairs(setting, args.engines)
    limits = [before, _limits(setting)]
    summary = summarize(result)
    conditions = {"cold": cold, "group": args.group if limited else None, "memory": setting.memory}
    text = f"{table(summary)}\n\n" + "\n".join(
        f"limit of ours, {when} the pairs: {limit['decode_limit']:.2f} tokens/s; reached "
        f"{limit['decode_rate'] / limit['decode_limit']:.2f} of it"
        for when, limit in zip(("before", "after"), limits, strict=True)
    )
    if streamed:
        text = f"{conditions}\n\n{text}"
    return text, result | {"conditions": conditions, "summary": summary, "limits": limits}


def _limits(setting: Setting) -> dict[str, Any]:
    """What disk and memory allow our engine, by the project's own command."""
    command = [sys.executable, "-m", "numpy_bloom.benchmark", "--json"]
    command += ["--model", str(setting.prepared / OURS), "--threads", str(setting.threads)]
    command += ["--prompt-tokens", str(len(setting.prompt))]
    command += ["--memory", setting.memory] if setting.memory else []
    limits: dict[str, Any] = json.loads(subprocess.check_output(command))
    return limits


def _memory(args: argparse.Namespace, prompt: list[int]) -> Measured:
    sizes = args.sizes.split(",")
    rows = memory_sweep(args.prepared, args.threads, sizes, args.repeats, prompt, args.new_tokens)
    return memory_table(rows), {"rows": rows}


def _tokens(args: argparse.Namespace, prompt: list[int]) -> Measured:
    counts = [int(count) for count in args.counts.split(",")]
    rows, skipped = tokens_sweep(
        args.prepared, args.threads, args.engines, counts, args.repeats, prompt
    )
    return tokens_table(rows), {"rows": rows, "skipped": skipped}


if __name__ == "__main__":
    try:
        main()
    except (EngineError, NumpyBloomError, subprocess.CalledProcessError) as error:
        sys.exit(f"compare: {error}")
