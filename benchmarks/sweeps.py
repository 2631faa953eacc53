"""How speed depends on one quantity: on the memory given to us, or on the tokens in a pass.

Every repeat goes through all values, so that a machine that slows down slows all of them.
"""

import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from converted import read_converted
from engines import OURS
from report import markdown
from worker import EngineError, Worker

from numpy_bloom.weights.rates import disk_rate


def memory_sweep(
    prepared: Path,
    threads: int,
    sizes: Sequence[str],
    repeats: int,
    prompt: Sequence[int],
    new_tokens: int,
) -> list[dict[str, Any]]:
    """Seconds per token of ours at each setting of the dial; `all` leaves it at its default.

    The raw rate of the disk on the same files is taken just before and after each run.
    """
    _, contents = read_converted(prepared / OURS)
    matrices = [a for _, arrays in contents for a in arrays.values() if len(a.shape) > 1]
    rows: dict[str, list[dict[str, Any]]] = {size: [] for size in sizes}
    for repeat in range(repeats):
        for size in sizes:
            before = disk_rate(matrices)
            memory = None if size == "all" else size
            with Worker(OURS, prepared, threads, memory=memory) as worker:
                worker.run(prompt, 1)
                run = worker.run(prompt, new_tokens)
            rate = (before + disk_rate(matrices)) / 2
            read = statistics.median(run.bytes_read[1:] or [0])
            rows[size].append(
                {
                    "seconds_per_token": run.decode_seconds,
                    "bytes_read_per_pass": read,
                    "disk_rate": rate,
                    "share_of_disk_rate": read / run.decode_seconds / rate,
                    "peak_memory_bytes": run.peak_memory_bytes,
                }
            )
            print(
                f"repeat {repeat + 1} of {repeats}, memory {size}: "
                f"{run.decode_seconds:.3f} s/token",
                file=sys.stderr,
            )
    return [{"memory": size} | _medians(runs) | {"runs": runs} for size, runs in rows.items()]


def tokens_sweep(
    prepared: Path,
    threads: int,
    engines: Sequence[str],
    counts: Sequence[int],
    repeats: int,
    prompt: Sequence[int],
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Seconds of a pass over so many tokens from an empty cache, everything in memory.

    Returns:
        A row for each engine and count, and why an engine was skipped.
    """
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        workers = []
        for engine in engines:
            try:
                workers.append(stack.enter_context(Worker(engine, prepared, threads)))
            except EngineError as error:
                print(f"{engine}: skipped, {error}", file=sys.stderr)
                skipped[engine] = str(error)
        for count in counts:
            seconds: dict[str, list[float]] = {worker.engine: [] for worker in workers}
            for worker in workers:
                worker.run(prompt[:count], 1)
            for _ in range(repeats):
                for worker in workers:
                    seconds[worker.engine] += worker.run(prompt[:count], 1).pass_seconds
            for engine, times in seconds.items():
                middle = statistics.median(times)
                row = {"engine": engine, "tokens": count, "seconds": middle, "runs": times}
                rows.append(row | {"tokens_per_second": count / middle})
                print(f"{engine}, {count} tokens: {middle:.3f} s", file=sys.stderr)
    return rows, skipped


def _medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def memory_table(rows: Sequence[dict[str, Any]]) -> str:
    """A table for people."""
    head = ("memory", "s/token", "GB read/pass", "share of disk rate", "peak memory MB")
    lines: list[Sequence[str]] = [head]
    for row in rows:
        lines.append(
            (
                row["memory"],
                f"{row['seconds_per_token']:.3f}",
                f"{row['bytes_read_per_pass'] / 1e9:.3f}",
                f"{row['share_of_disk_rate']:.2f}" if row["bytes_read_per_pass"] else "-",
                f"{row['peak_memory_bytes'] / 1e6:.0f}",
            )
        )
    return markdown(lines)


def tokens_table(rows: Sequence[dict[str, Any]]) -> str:
    """A table for people: tokens per second, an engine a column."""
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    rates = {(row["engine"], row["tokens"]): row["tokens_per_second"] for row in rows}
    lines: list[Sequence[str]] = [
        ("tokens in the pass", *(f"{name}, tokens/s" for name in engines))
    ]
    for count in dict.fromkeys(row["tokens"] for row in rows):
        lines.append((str(count), *(f"{rates[name, count]:.1f}" for name in engines)))
    return markdown(lines)
