"""How a measurement is told: a Markdown table for people, a JSON file with every single time."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are also aligned as text; the first line is its head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def text(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join((first, *rest)) + " |"

    rule = (
        "|"
        + "|".join("-" * (width + 1) + ("-" if not i else ":") for i, width in enumerate(widths))
        + "|"
    )
    return "\n".join([text(lines[0]), rule, *map(text, lines[1:])])


def tell(result: Mapping[str, Any], text: str, target: Path) -> None:
    """Write everything to a JSON file, print the machine and the text.

    Args:
        result: `machine`, as `machine.describe` gives it, and whatever was measured.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(f"{key}: {value}" for key, value in result["machine"].items()))
    print(text)
