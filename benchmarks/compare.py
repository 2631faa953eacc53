"""Measure this project against its peers, on one machine, in one run, on the same weights.

    python benchmarks/compare.py resident peers-560m     everything in memory
    python benchmarks/compare.py streamed peers-560m     larger than memory, cold; needs root
    python benchmarks/compare.py disk peers-560m         ours, streaming, against the disk alone
    python benchmarks/compare.py memory peers-560m       ours, against the memory dial
    python benchmarks/compare.py tokens peers-560m       a pass, against the tokens in it

The folder is one that `prepare.py` filled. A table goes to stdout; results/MODE.json has every
single time; the last two are also drawn, as results/MODE.svg.
"""

import argparse
import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from disk import disk_pairs, disk_table
from engines import ENGINES, OURS
from machine import describe
from memory_group import can_drop_page_cache, can_limit, disk_group
from pairs import Setting, run_pairs, summarize, table
from report import tell
from sweeps import memory_sweep, memory_table, tokens_sweep, tokens_table
from worker import EngineError

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.sizes import parse_size
from numpy_bloom.weights.bounded import read_json
from numpy_bloom.weights.budget import default_threads


@dataclass(frozen=True)
class Mode:
    """What a mode does unless options say otherwise.

    Attributes:
        engines: the peers.
        prompt_tokens, new_tokens: of a run.
        repeats: pairs or rounds.
        memory: our dial; None for all that is free.
    """

    engines: tuple[str, ...]
    prompt_tokens: int
    new_tokens: int
    repeats: int = 5
    memory: str | None = None


TORCH = ("transformers-bfloat16", "transformers-float32")
MODES = {
    "resident": Mode((*TORCH, "llama.cpp"), 128, 17),
    "streamed": Mode(("llama.cpp", "accelerate-disk", "tutorial"), 16, 5, memory="500MB"),
    "disk": Mode((), 1, 5, repeats=12, memory="200MB"),
    "memory": Mode((), 16, 5),
    "tokens": Mode((OURS, *TORCH, "llama.cpp"), 128, 1),
}


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("mode", choices=MODES)
    add("prepared", type=Path)
    add("--engines", metavar="A,B", help=f"peers, of {', '.join(ENGINES)}")
    add("--ours", default=OURS, metavar="A", help="what they are compared with: one of our engines")
    add("--repeats", type=int, metavar="N", help=_default("pairs or rounds", "repeats"))
    add("--prompt-tokens", type=int, metavar="N", help=_default("of a run", "prompt_tokens"))
    add("--new-tokens", type=int, metavar="N", help=_default("of a run", "new_tokens"))
    add("--threads", type=int, default=default_threads(), metavar="N", help="of every engine")
    add("--memory", metavar="SIZE", help=_default("our dial", "memory"))
    add("--disk-rate", metavar="SIZE", help="hold all to so much a second, such as 1GB; needs root")
    add("--group", default="700MB", help="streamed: the memory group (default: %(default)s)")
    add("--sizes", default="200MB,300MB,500MB,750MB,1GB,1.25GB,all", help="memory: the dial")
    add("--counts", default="1,2,4,8,16,32,64,128", help="tokens: in the pass")
    add("--out", type=Path, default=Path("results"), help="default: %(default)s")
    args = parser.parse_args()
    mode = MODES[args.mode]
    args.engines = args.engines.split(",") if args.engines else mode.engines
    unknown = [name for name in (args.ours, *args.engines) if name not in ENGINES]
    if unknown:
        parser.error(f"unknown engines: {', '.join(unknown)}")
    for option in ("prompt_tokens", "new_tokens", "repeats", "memory"):
        setattr(args, option, getattr(args, option) or getattr(mode, option))

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
    measure = {"disk": _disk, "memory": _memory, "tokens": _tokens}.get(args.mode, _pairs)
    with disk_group(args.prepared, parse_size(args.disk_rate)) if args.disk_rate else nullcontext():
        text, measured = measure(args, prompt)
    result |= {"disk_rate": args.disk_rate} | measured
    target = args.out / f"{args.mode}.json"
    description = (
        f"model: {result['model']}; prompt of {args.prompt_tokens} tokens, "
        f"{args.new_tokens} new; {args.threads} threads"
    )
    tell(result, f"{description}\n\n{text}", target)
    if "rows" in result and find_spec("matplotlib"):
        from plots import draw  # noqa: PLC0415  (not everybody has matplotlib)

        print(f"{draw(target)} written", file=sys.stderr)


def _default(what: str, name: str) -> str:
    """The help of an option whose default depends on the mode."""
    values = {key: getattr(mode, name) for key, mode in MODES.items()}
    told = ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)
    return f"{what} (default: {told})"


Measured = tuple[str, dict[str, Any]]
"""A table for people, and what goes into the JSON file."""


def _setting(args: argparse.Namespace, prompt: list[int]) -> Setting:
    """What is run: with the dial turned down also cold, and for `streamed` in memory groups."""
    streaming = MODES[args.mode].memory is not None
    cold = streaming and can_drop_page_cache()
    limited = args.mode == "streamed" and can_limit()
    if streaming and not cold:
        print("without root: the page cache is left as it is", file=sys.stderr)
    if args.mode == "streamed" and not limited:
        print("without root: no memory groups", file=sys.stderr)
    return Setting(
        args.prepared,
        args.threads,
        args.repeats,
        prompt,
        args.new_tokens,
        memory=args.memory,
        group_bytes=parse_size(args.group) if limited else None,
        cold=cold,
        ours=args.ours,
    )


def _pairs(args: argparse.Namespace, prompt: list[int]) -> Measured:
    setting = _setting(args, prompt)
    before = _limits(setting)
    result = run_pairs(setting, args.engines)
    limits = [before, _limits(setting)]
    summary = summarize(result)
    group = args.group if setting.group_bytes else None
    conditions = {"cold": setting.cold, "group": group, "memory": setting.memory}
    text = f"{table(summary)}\n\n" + "\n".join(
        f"limit of ours, {when} the pairs: {limit['decode_limit']:.2f} tokens/s; reached "
        f"{limit['decode_rate'] / limit['decode_limit']:.2f} of it"
        for when, limit in zip(("before", "after"), limits, strict=True)
    )
    if setting.memory:
        text = f"{conditions}\n\n{text}"
    return text, result | {"conditions": conditions, "summary": summary, "limits": limits}


def _limits(setting: Setting) -> dict[str, Any]:
    """What disk and memory allow our engine, by the project's own command."""
    command = [sys.executable, "-m", "numpy_bloom.benchmark", "--json"]
    command += ["--model", str(setting.prepared / setting.ours), "--threads", str(setting.threads)]
    command += ["--prompt-tokens", str(len(setting.prompt))]
    command += ["--memory", setting.memory] if setting.memory else []
    limits: dict[str, Any] = json.loads(subprocess.check_output(command))
    return limits


def _disk(args: argparse.Namespace, prompt: list[int]) -> Measured:
    setting = _setting(args, prompt)
    result = disk_pairs(setting)
    conditions = {"cold": setting.cold, "memory": setting.memory}
    return f"{conditions}\n\n{disk_table(result)}", {"conditions": conditions} | result


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
