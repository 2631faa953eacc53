"""A model over a cluster on this machine: memory, speed, and workers that are killed.

    python benchmarks/cluster.py memory bloom-560m      peak of each worker beside its range
    python benchmarks/cluster.py speed bloom-560m       two workers of one thread beside one process
    python benchmarks/cluster.py kills --runs 100       the demo model, a worker killed in each

Prints Markdown and, with --out, writes every figure to FILE. Needs the extra `cluster`.
"""

import argparse
import os
import random
import signal
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from report import markdown, tell

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.weights.budget import peak_memory_bytes

PROMPT_TOKENS = 16
NEW_TOKENS = 16
BESIDE = 150 * 10**6
"""Bytes that a worker may take beside its range."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", choices=MEASUREMENTS)
    add("model", nargs="?", metavar="DIR", help="a converted model (default: the demo model)")
    add("--workers", type=int, default=0, metavar="N", help="default: 2, or 3 for kills")
    add("--runs", type=int, default=5, metavar="N", help="default: %(default)s")
    add("--out", type=Path, metavar="FILE")
    args = parser.parse_args()
    result, lines = MEASUREMENTS[args.what](args)
    if args.out:
        tell({"machine": describe()} | result, markdown(lines), args.out)
    else:
        print(markdown(lines))


def prompts(model: Bloom, count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return list(random.integers(3, model.config.vocab_size, (count, PROMPT_TOKENS)))


def memory(args: argparse.Namespace) -> tuple[dict[str, Any], list[tuple[str, ...]]]:
    """Peak resident memory of each worker after a prompt and some tokens."""
    lines = [("process", "range, MB", "peak, MB", "beside, MB")]
    peaks = {}
    with numpy_bloom.load(args.model, cluster=f"local:{args.workers or 2}") as model:
        list(model.generate(prompts(model, 1)[0], max_new_tokens=NEW_TOKENS))
        chain = model.model._chain
        told = chain.workers.client.run(peak_memory_bytes)
        for part in chain.parts:
            peak = told[part.worker.address]
            peaks[str(part)] = peak, part.nbytes
            beside = peak - part.nbytes
            row = (part.nbytes, peak, beside)
            lines.append((str(part), *(f"{nbytes / 1e6:.1f}" for nbytes in row)))
            if beside > BESIDE:
                print(f"{part}: more than {BESIDE / 1e6:.0f} MB", file=sys.stderr)
    lines.append(("client", "0", f"{peak_memory_bytes() / 1e6:.1f}", ""))
    return {"peaks": peaks, "client": peak_memory_bytes()}, lines


def speed(args: argparse.Namespace) -> tuple[dict[str, Any], list[tuple[str, ...]]]:
    """One process with one thread, one sequence over the cluster, and eight: alternately."""
    times: dict[str, list[float]] = {"one process": [], "cluster, 1": [], "cluster, 8": []}
    with (
        numpy_bloom.load(args.model, threads=1) as one,
        numpy_bloom.load(args.model, threads=1, cluster=f"local:{args.workers or 2}") as spread,
    ):
        one_text, eight = prompts(one, 1), prompts(one, 8)
        for number in range(args.runs):
            settings = [
                ("one process", one, one_text),
                ("cluster, 1", spread, one_text),
                ("cluster, 8", spread, eight),
            ]
            for name, model, texts in settings[:: 1 if number % 2 else -1]:
                times[name].append(pass_seconds(model, texts))
        expected = spread.model._chain.expected_seconds
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    lines = [("", "ms a pass", "tokens/s")]
    for name, seconds in median.items():
        count = 8 if name.endswith("8") else 1
        lines.append((name, f"{seconds * 1e3:.1f}", f"{count / seconds:.2f}"))
    pairs = list(zip(*times.values(), strict=True))
    costs = sorted(one / alone for alone, one, _ in pairs)
    gains = sorted(8 * one / eight for _, one, eight in pairs)
    for name, ratios in (("cluster, 1 over one process", costs), ("tokens/s of 8 over 1", gains)):
        spread_of = f"({ratios[0]:.3f} to {ratios[-1]:.3f})"
        lines.append((name, f"{statistics.median(ratios):.3f}", spread_of))
    lines.append(("the plan expects of cluster, 1", f"{expected * 1e3:.1f}", ""))
    return {"seconds": times, "expected": expected}, lines


def pass_seconds(model: Bloom, texts: list[np.ndarray]) -> float:
    """Median of the passes after the prompt."""
    generations = model.generate_batch(texts, max_new_tokens=NEW_TOKENS)
    for generation in generations:
        for _ in generation:
            pass
    passes = generations[-1]._continuation.passes[1:]
    return statistics.median(one.seconds for one in passes)


def kills(args: argparse.Namespace) -> tuple[dict[str, Any], list[tuple[str, ...]]]:
    """Generations, in each of which a random worker is killed at a random moment."""
    prompt, new = "Todos los seres humanos nacen", 40
    with numpy_bloom.load(args.model) as one:
        expected = [token.id for token in one.generate(prompt, max_new_tokens=new)]
    seconds, repairs, same = [], 0, 0
    chance = random.Random(0)
    before = children()
    with numpy_bloom.load(args.model, cluster=f"local:{args.workers or 3}") as model:
        start = time.perf_counter()
        list(model.generate(prompt, max_new_tokens=new))
        undisturbed = time.perf_counter() - start
        for _ in range(args.runs):
            start = time.perf_counter()
            timer = threading.Timer(chance.uniform(0, undisturbed), kill, [model, chance])
            timer.start()
            generation = model.generate(prompt, max_new_tokens=new)
            same += [token.id for token in generation] == expected
            timer.join()
            seconds.append(time.perf_counter() - start)
        repairs = model.model._repairs
    left = len(children() - before)
    lines = [
        ("runs", "same text", "repairs", "median, s", "longest, s", "processes left"),
        (
            f"{args.runs}",
            f"{same}",
            f"{repairs}",
            f"{statistics.median(seconds):.2f}",
            f"{max(seconds):.2f}",
            f"{left}",
        ),
    ]
    if same < args.runs or max(seconds) > 30 or left:
        raise SystemExit(markdown(lines))
    return {"seconds": seconds, "repairs": repairs}, lines


def kill(model: Bloom, chance: random.Random) -> None:
    """SIGKILL one of the processes that hold blocks."""
    chain = model.model._chain
    pids = chain.workers.client.run(os.getpid)
    holders = [address for address in pids if address in {p.worker.address for p in chain.parts}]
    os.kill(pids[chance.choice(holders or list(pids))], signal.SIGKILL)


def children() -> set[int]:
    """Processes that stem from this one, but for those that have ended, and for the tracker of
    `multiprocessing`, which ends with the interpreter."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            tracker = b"resource_tracker" in stat.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if state != "Z" and not tracker:
            parents[int(stat.parent.name)] = int(parent)
    found, new = set[int](), {os.getpid()}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new}
        found |= new
    return found


MEASUREMENTS = {"memory": memory, "speed": speed, "kills": kills}

if __name__ == "__main__":
    main()
