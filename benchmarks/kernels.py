"""How fast matrices of each stored type are multiplied by so many tokens, in pairs with bfloat16.

    python benchmarks/kernels.py

Matrices larger than the caches, everything in memory, through the folder that conversion writes:
the first matrix of the MLP in each block of a model with random weights. The table has billions
of weights a second and, in brackets, the median over pairs of how much faster than bfloat16 that
is; bfloat16 against itself shows the noise. results/kernels.json has every single time.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from machine import describe
from make_checkpoint import write_checkpoint
from report import markdown, tell

import numpy_bloom
from conversion import convert
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.linear import linear
from numpy_bloom.weights.team import one_blas_thread

BASE = "bfloat16"
DTYPES = ("float32", BASE, "float16", "bfloat16-packed", "int8", "int4")
COUNTS = "1,2,4,8,16,64,128"
HEAD_SIZE = 64
TIMED_TOKENS = 16
"""A timing goes over the matrices until they have met so many tokens, and at least once."""
VOCABULARY = 8192  # the head is not measured; the tokenizer has 6,000 entries


class Case(NamedTuple):
    """A model whose every block has one matrix to be measured, (4 H, H)."""

    hidden_size: int
    blocks: int

    def __str__(self) -> str:
        return f"{self.blocks} matrices of {4 * self.hidden_size:,} x {self.hidden_size:,}"


CASES = (Case(4096, 2), Case(1024, 24))
"""A hundred million weights or more, so that four bits each are still more than a cache holds."""


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    add = parser.add_argument
    add("--dtypes", default=",".join(DTYPES), metavar="A,B", help="default: %(default)s")
    add("--counts", default=COUNTS, metavar="N,N", help="tokens (default: %(default)s)")
    add("--pairs", type=int, default=9, metavar="N", help="default: %(default)s")
    add("--threads", type=int, default=2, metavar="N", help="default: %(default)s")
    add("--out", type=Path, default=Path("results"), help="default: %(default)s")
    args = parser.parse_args()
    counts = [int(count) for count in args.counts.split(",")]
    rows = []
    for case in CASES:
        rows += measure(case, args.dtypes.split(","), counts, args.threads, args.pairs)
    text = "\n\n".join(
        f"{case}, {args.threads} threads: Gparam/s (times bfloat16)\n\n{table(rows, str(case))}"
        for case in CASES
    )
    result = {"machine": describe(), "threads": args.threads, "rows": rows}
    tell(result, f"\n{text}", args.out / "kernels.json")


def measure(
    case: Case, dtypes: Sequence[str], counts: Sequence[int], threads: int, pairs: int
) -> list[dict[str, Any]]:
    """One row a type and number of tokens; types that cannot be had are left out with a word."""
    rows: list[dict[str, Any]] = []
    with opened(case, BASE, threads, max(counts)) as base:
        for dtype in dtypes:
            try:
                with opened(case, dtype, threads, max(counts)) as other:
                    for tokens in counts:
                        row = {"case": str(case), "dtype": dtype, "tokens": tokens}
                        rows.append(row | time_pairs(base, other, tokens, pairs))
                        print(f"{case}, {dtype}, {tokens} tokens: done", file=sys.stderr)
            except NumpyBloomError as error:
                print(f"{dtype}: skipped, {error}", file=sys.stderr)
    return rows


@contextmanager
def opened(case: Case, dtype: str, threads: int, tokens: int) -> Iterator[numpy_bloom.Bloom]:
    """A model whose matrices are of this type, all of it in memory.

    Raises:
        NumpyBloomError: conversion does not know the type, or memory is too small.
    """
    # bfloat16 is not converted to float16, so a float16 model begins as one.
    source = "float16" if dtype == "float16" else BASE
    hidden, blocks = case
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, converted = Path(folder, "checkpoint"), Path(folder, "converted")
        write_checkpoint(
            checkpoint, hidden, hidden // HEAD_SIZE, blocks, vocabulary=VOCABULARY, dtype=source
        )
        convert(checkpoint, converted, dtype)
        with numpy_bloom.load(converted, threads=threads) as bloom:
            bloom(np.arange(tokens))  # loads whatever fits into memory
            stream = bloom.model.stream
            if stream.bytes_pinned < stream.nbytes:
                raise NumpyBloomError(f"{case} as {dtype} do not fit into memory")
            yield bloom


def time_pairs(
    base: numpy_bloom.Bloom, other: numpy_bloom.Bloom, tokens: int, pairs: int
) -> dict[str, Any]:
    """Rate of the other's matrices, and how much faster than the base's they are in each pair."""
    hidden = base.config.hidden_size
    x = np.random.default_rng(0).standard_normal((tokens, hidden), dtype=np.float32)
    seconds = []
    for number in range(-1, pairs):
        order = (base, other) if number % 2 == 0 else (other, base)
        taken = {id(bloom): multiply_all(bloom, x) for bloom in order}
        if number >= 0:  # one pair goes untimed: first products make scratch arrays
            seconds.append([taken[id(base)], taken[id(other)]])
    weights = 4 * hidden**2 * base.config.num_hidden_layers  # of the matrices timed
    ratios = [a / b for a, b in seconds]
    return {
        "rate": weights / statistics.median(b for _, b in seconds),
        "base_rate": weights / statistics.median(a for a, _ in seconds),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "seconds": seconds,
    }


def multiply_all(bloom: numpy_bloom.Bloom, x: Floats) -> float:
    """Mean seconds of x times one matrix of every block."""
    rounds = max(1, TIMED_TOKENS // len(x))
    matrices = [block.mlp.dense_h_to_4h.weight for block in bloom.model.parameters.blocks]
    with one_blas_thread():
        begin = time.perf_counter()
        for matrix in matrices * rounds:
            linear(x, matrix)
        return (time.perf_counter() - begin) / rounds


def table(rows: Sequence[dict[str, Any]], case: str) -> str:
    """A table for people: a type a line, a number of tokens a column."""
    cells: dict[str, dict[int, str]] = {}
    for row in rows:
        if row["case"] == case:
            cell = f"{row['rate'] / 1e9:.2f} ({row['ratio']:.2f})"
            cells.setdefault(row["dtype"], {})[row["tokens"]] = cell
    counts = sorted({tokens for line in cells.values() for tokens in line})
    head = ["tokens", *map(str, counts)]
    return markdown([head, *([dtype, *(line[n] for n in counts)] for dtype, line in cells.items())])


if __name__ == "__main__":
    try:
        main()
    except NumpyBloomError as error:
        sys.exit(f"kernels: {error}")
