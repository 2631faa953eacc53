"""Compare a model's stages with those of transformers, and both with float64.

    python tests/reference/compare_trace.py CHECKPOINT MODEL "Todos los seres humanos nacen"

CHECKPOINT is the Hugging Face folder that MODEL was converted from. Each line has a stage's largest
deviation: of ours from transformers', of ours from float64, of theirs from float64. Where two
implementations only round differently, all three are alike; the first stage that deviates by more
than the tolerance is named, and the exit code is then 1.
"""

import argparse
import sys
from pathlib import Path

import transformers_stages as ts

import numpy_bloom
from numpy_bloom.study.compare import Difference

TOLERANCE = 2e-5
"""As in tests/support/parity.py."""


def main() -> int:
    """Parse, compute, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="default: %(default)s")
    args = parser.parse_args()
    with numpy_bloom.load(args.model) as bloom:
        ids = bloom.encode(args.prompt)
        _, trace = bloom.trace(ids)
        reference = ts.stages(ts.load(args.checkpoint), ids)
        rows = trace.diff(reference, exact=True)
        divergence = trace.first_divergence(reference, args.tolerance)
    print(_table(rows))
    print(f"first divergence: {divergence or 'none'}")
    return 1 if divergence else 0


def _table(rows: list[Difference]) -> str:
    lines = [f"{'stage':<28}{'deviation':>12}{'ours, exact':>14}{'theirs, exact':>14}"]
    for row in rows:
        deviations = (row.deviation, row.ours_from_exact, row.other_from_exact)
        lines.append(
            f"{row.stage:<28}{deviations[0]:>12.1e}"
            + "".join(f"{value:>14.1e}" for value in deviations[1:] if value is not None)
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
