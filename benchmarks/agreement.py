"""Do all engines compute the same model? Logits of a few passes against ours, engine by engine.

    python benchmarks/agreement.py

makes a small checkpoint (12 heads, no power of two; real vocabulary), prepares it for every engine,
gives each a prompt and then some single tokens, and compares the logits of every pass. What is
wrong in an exported file or in a loop shows as a difference of the logits' own size. With a folder
that `prepare.py` filled as argument, that one is compared instead.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from engines import ENGINES, OURS, missing, open_engine
from make_checkpoint import write_checkpoint
from prepare import prepare
from report import markdown

from numpy_bloom.weights.bounded import read_json
from numpy_bloom.weights.dtypes import Floats

HIDDEN, HEADS, BLOCKS = 192, 12, 3
DEVIATION = 0.1  # of the weights, so that attention is far from uniform
PROMPT_TOKENS, SINGLE_TOKENS = 24, 3
THREADS = 2
TOLERANCES = {True: 1e-4, False: 0.05}
"""Largest root mean square of the difference, relative to the logits', for float32 and for types of
8 or 11 bits, whose rounding of 2**-9 adds up over the layers."""


def main() -> int:
    """Parse, compare, print; 1 if an engine differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("prepared", type=Path, nargs="?")
    args = parser.parse_args()
    if args.prepared:
        return compare(args.prepared)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, prepared = Path(folder, "checkpoint"), Path(folder, "prepared")
        write_checkpoint(checkpoint, HIDDEN, HEADS, BLOCKS, deviation=DEVIATION)
        prepare(checkpoint, prepared)
        return compare(prepared)


def compare(prepared: Path) -> int:
    """Run every engine that can run, and compare with ours."""
    vocab = read_json(prepared / OURS / "config.json")["vocab_size"]
    ids = np.random.default_rng(0).integers(3, vocab, PROMPT_TOKENS + SINGLE_TOKENS).tolist()
    expected = _logits(OURS, prepared, ids)
    lines = [("engine", "relative difference", "same likeliest token", "")]
    wrong = 0
    for name, source in ENGINES.items():
        reason = missing(name, prepared)
        if reason is not None:
            print(f"{name}: skipped, {reason}", file=sys.stderr)
            continue
        found = _logits(name, prepared, ids)
        difference = _rms(found - expected) / _rms(expected)
        same = int((found.argmax(-1) == expected.argmax(-1)).sum())
        agrees = difference < TOLERANCES[source.exact]
        wrong += not agrees
        verdict = "agrees" if agrees else "DIFFERS"
        lines.append((name, f"{difference:.1e}", f"{same} of {len(expected)}", verdict))
    print(markdown(lines))
    return 1 if wrong else 0


def _logits(name: str, prepared: Path, ids: list[int]) -> Floats:
    """Logits of the prompt's pass and of each single token's: (passes, V)."""
    engine = open_engine(name, prepared, THREADS)
    engine.reset(len(ids))
    passes = [ids[:PROMPT_TOKENS], *([token] for token in ids[PROMPT_TOKENS:])]
    return np.stack([engine.forward(new) for new in passes])


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


if __name__ == "__main__":
    sys.exit(main())
