"""Draw the sweeps of `compare.py` from its JSON files, as SVG.

python benchmarks/plots.py results/memory.json results/tokens.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from numpy_bloom.sizes import parse_size

SIZE_INCHES = (6.0, 3.6)


def main() -> None:
    """Draw every file named."""
    for name in sys.argv[1:]:
        draw(Path(name))


def draw(path: Path) -> Path:
    """Draw one result beside its JSON file."""
    result = json.loads(path.read_text())
    plt.rcParams["svg.fonttype"] = "none"  # text stays text
    plt.rcParams["svg.hashsalt"] = path.stem  # the same file for the same numbers
    figure, axes = plt.subplots(figsize=SIZE_INCHES, layout="constrained")
    {"memory": _memory, "tokens": _tokens}[result["mode"]](axes, result)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    machine = result["machine"]
    caption = (
        f"{result['model']}\n{machine['processor']}, {machine['cores']} cores, {machine['date']}"
    )
    axes.set_title(caption, fontsize=8, loc="left")
    target = path.with_suffix(".svg")
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)
    return target


def _memory(axes: Axes, result: dict[str, Any]) -> None:
    """Seconds per token, and what reading from disk alone would take."""
    rows = sorted(result["rows"], key=_megabytes)
    x = [_megabytes(row) for row in rows]
    axes.plot(x, [row["seconds_per_token"] for row in rows], "o-", label="numpy-bloom")
    limit = [row["bytes_read_per_pass"] / row["disk_rate"] for row in rows]
    axes.plot(x, limit, ":", color="grey", label="reading the rest at the disk's raw rate")
    axes.set_xlabel("memory, MB")
    axes.set_ylabel("seconds per token")
    axes.set_ylim(bottom=0)


def _megabytes(row: dict[str, Any]) -> float:
    """The dial, or for `all` what was really taken."""
    nbytes = row["peak_memory_bytes"] if row["memory"] == "all" else parse_size(row["memory"])
    return nbytes / 1e6


def _tokens(axes: Axes, result: dict[str, Any]) -> None:
    """Tokens per second, a line an engine."""
    rows = result["rows"]
    for engine in dict.fromkeys(row["engine"] for row in rows):
        points = [
            (row["tokens"], row["tokens_per_second"]) for row in rows if row["engine"] == engine
        ]
        axes.plot(*zip(*points, strict=True), "o-", label=engine)
    axes.set_xscale("log")
    axes.set_yscale("log")
    counts = sorted({row["tokens"] for row in rows})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("tokens in the pass")
    axes.set_ylabel("tokens per second")


if __name__ == "__main__":
    main()
