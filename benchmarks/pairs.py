"""Our engine against each peer in alternating pairs: the ratio within a pair is what counts.

Machines that are shared change their speed from minute to minute; two runs one after the other
mostly see the same machine, and the median over pairs forgets the rest.
"""

import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines import ENGINES, OURS
from memory_group import drop_page_cache, memory_group
from report import markdown
from worker import EngineError, Run, Worker

IN_GROUP = (*(name for name in ENGINES if ENGINES[name].ours), "llama.cpp")
"""Engines that a memory limit below the model's size does not kill. The tutorial's loop needs twice
the embeddings, accelerate the embeddings and torch: they run without, to their advantage."""


@dataclass(frozen=True)
class Setting:
    """What is run, and how.

    Attributes:
        memory: our engine's dial; None for all that is free.
        group_bytes: limit of memory for the engines of `IN_GROUP`, a group each; None for none.
        cold: whether the page cache is dropped before each pass.
        ours: which of our engines the peers are compared with.
    """

    prepared: Path
    threads: int
    pairs: int
    prompt: Sequence[int]
    new_tokens: int
    memory: str | None = None
    group_bytes: int | None = None
    cold: bool = False
    ours: str = OURS


def run_pairs(setting: Setting, peers: Sequence[str]) -> dict[str, Any]:
    """Time all pairs.

    Returns:
        For each peer that could run, `runs`: a list of pairs of `Run` as dicts, ours first; and
        `skipped`: why each of the others could not.
    """
    result: dict[str, Any] = {"runs": {}, "skipped": {}}
    with ExitStack() as stack:
        ours = _start(setting.ours, setting, stack)
        for peer in peers:
            try:
                result["runs"][peer] = _pairs_with(ours, peer, setting)
            except EngineError as error:
                print(f"{peer}: skipped, {error}", file=sys.stderr)
                result["skipped"][peer] = str(error)
    return result


def _start(engine: str, setting: Setting, stack: ExitStack) -> Worker:
    """Start an engine and let it do one untimed pass: first passes pin, compile and allocate."""
    if setting.cold:
        drop_page_cache()
    group = None
    if setting.group_bytes and engine in IN_GROUP:
        group = stack.enter_context(memory_group(setting.group_bytes))
    worker = Worker(
        engine,
        setting.prepared,
        setting.threads,
        memory=setting.memory if ENGINES[engine].ours else None,
        group=group,
    )
    stack.enter_context(worker)
    worker.run(setting.prompt, 2)
    return worker


def _pairs_with(ours: Worker, peer: str, setting: Setting) -> list[list[dict[str, Any]]]:
    pairs = []
    with ExitStack() as stack:
        other = _start(peer, setting, stack)
        for number in range(setting.pairs):
            order = (ours, other) if number % 2 == 0 else (other, ours)
            runs = {worker: _run(worker, setting) for worker in order}
            pairs.append([asdict(runs[ours]), asdict(runs[other])])
            a, b = runs[ours], runs[other]
            print(
                f"{peer}, pair {number + 1} of {setting.pairs}: prefill {b.prefill_seconds:.3f} s"
                f" (ours {a.prefill_seconds:.3f}), decode {b.decode_seconds:.3f} s/token"
                f" (ours {a.decode_seconds:.3f})",
                file=sys.stderr,
            )
    return pairs


def _run(worker: Worker, setting: Setting) -> Run:
    """One run. A cold peer finds the page cache dropped before each pass. Ours reads past it, and
    would use the pause to read ahead in time that nobody counts: its passes follow each other."""
    if not setting.cold:
        return worker.run(setting.prompt, setting.new_tokens)
    if ENGINES[worker.engine].ours:
        drop_page_cache()
        return worker.run(setting.prompt, setting.new_tokens)
    return worker.run(setting.prompt, setting.new_tokens, drop_page_cache)


def summarize(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a peer: medians of seconds, and of the pairs' ratios with the least and the most.

    A ratio above 1 means that ours is faster by that factor.
    """
    rows = []
    for peer, pairs in result["runs"].items():
        runs = [(Run(**ours), Run(**other)) for ours, other in pairs]
        row: dict[str, Any] = {"peer": peer}
        for phase in ("prefill", "decode"):
            seconds = [[getattr(run, f"{phase}_seconds") for run in pair] for pair in runs]
            ratios = [other / ours for ours, other in seconds]
            row[f"{phase}_seconds_ours"] = statistics.median(ours for ours, _ in seconds)
            row[f"{phase}_seconds"] = statistics.median(other for _, other in seconds)
            row[f"{phase}_ratio"] = statistics.median(ratios)
            row[f"{phase}_ratio_range"] = [min(ratios), max(ratios)]
        ours, other = runs[-1]
        row["same_tokens"] = _same(ours.token_ids, other.token_ids)
        row["tokens"] = len(ours.token_ids)
        for name, run in (("_ours", ours), ("", other)):
            row[f"bytes_read_per_pass{name}"] = statistics.median(run.bytes_read or [0])
            row[f"peak_memory_bytes{name}"] = run.peak_memory_bytes
        rows.append(row)
    return rows


def _same(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens agree before the first that differs: after it the texts are different."""
    for place, (left, right) in enumerate(zip(a, b, strict=True)):
        if left != right:
            return place
    return len(a)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A table for people; times of ours stand beside each peer's, taken in the same pairs."""
    head = ["", "prefill s", "ours", "ratio", "decode s/token", "ours", "ratio", "least-most"]
    head += ["GB read/pass", "ours", "same tokens"]
    lines: list[Sequence[str]] = [head]
    for row in rows:
        least, most = row["decode_ratio_range"]
        lines.append(
            (
                row["peer"],
                f"{row['prefill_seconds']:.3f}",
                f"{row['prefill_seconds_ours']:.3f}",
                f"{row['prefill_ratio']:.2f}",
                f"{row['decode_seconds']:.4f}",
                f"{row['decode_seconds_ours']:.4f}",
                f"{row['decode_ratio']:.2f}",
                f"{least:.2f}-{most:.2f}",
                f"{row['bytes_read_per_pass'] / 1e9:.2f}",
                f"{row['bytes_read_per_pass_ours'] / 1e9:.2f}",
                f"{row['same_tokens']} of {row['tokens']}",
            )
        )
    return markdown(lines)
