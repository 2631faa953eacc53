"""Bring the tour up to date: what its code prints, its pictures, and the notebook.

    python docs/tour/make.py

runs the code of docs/tour.md and writes docs/tour.md, docs/tour/*.svg and docs/tour.ipynb.
tests/test_tour.py fails while they are not what this script would write.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from drawing import curves, heat_map
from pages import Block, Runner, blocks, code_and_output

from numpy_bloom.model.primitives import gelu

DOCS = Path(__file__).parent.parent


def main() -> None:
    """Run and write."""
    path = DOCS / "tour.md"
    page, namespace = with_output(path.read_text(encoding="utf-8"))
    path.write_text(page, encoding="utf-8")
    for name, picture in pictures(namespace).items():
        (DOCS / "tour" / name).write_text(picture, encoding="utf-8")
    (DOCS / "tour.ipynb").write_text(notebook(page), encoding="utf-8")


def with_output(page: str) -> tuple[str, dict[str, Any]]:
    """The page with what its code prints now, and the names that the code leaves behind."""
    runner = Runner("docs/tour.md")
    parts, end = [], 0
    for code, output in code_and_output(page):
        printed = runner.run(code.content, code.line)
        if output is not None:
            parts += [page[end : output.begin], f"```text\n{printed}```"]
            end = output.end
        elif printed:
            raise ValueError(f"docs/tour.md, line {code.line}: add a text block for what it prints")
    return "".join([*parts, page[end:]]), runner.namespace


def pictures(tour: Mapping[str, Any]) -> dict[str, str]:
    """The page's pictures by file name, drawn from the names that its code leaves behind."""
    distance = np.arange(9)
    heads = {f"head {head}": -tour["slopes"][head] * distance for head in (8, 0, 1, 6)}
    x = np.linspace(-4, 4, 81, dtype=np.float32)
    layers = np.arange(len(tour["shares"]))
    tokens = tour["bloom"].encode
    followed = {"en": "en", " lib": "␣lib"}
    shares = {shown: tour["shares"][:, tokens(text)[0]] for text, shown in followed.items()}
    drawn = {
        "alibi.svg": curves(distance, heads, "added to the score", "distance in tokens"),
        "gelu.svg": curves(x, {"ReLU": np.maximum(x, 0), "GELU": gelu(x)}, "after", "before"),
        "layers.svg": curves(layers, shares, "share of the token", "after so many blocks"),
    }
    for head in (8, 6):
        title = f"Pattern of head {head} of block 0"
        drawn[f"pattern_{head}.svg"] = heat_map(tour["pattern"][head], tour["words"], title)
    return drawn


def notebook(page: str) -> str:
    """The page as a Jupyter notebook (nbformat 4.5): a cell for each block of code."""
    outputs = {code: output for code, output in code_and_output(page) if output is not None}
    cells, end = [], 0
    for block in blocks(page):
        if block.language == "python":
            cells.append(_markdown(page[end : block.begin]))
            cells.append(_code(block, outputs.get(block)))
        elif block not in outputs.values():
            continue
        end = block.end
    cells.append(_markdown(page[end:]))
    cells = [cell for cell in cells if cell["source"]]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _markdown(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": _lines(text.strip())}


def _code(block: Block, output: Block | None) -> dict[str, Any]:
    shown = []
    if output is not None:
        text = _lines(output.content)
        shown.append({"name": "stdout", "output_type": "stream", "text": text})
    source = _lines(block.content.rstrip())
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "outputs": shown,
        "source": source,
    }


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    main()
