"""The tour's page, pictures and notebook are what `python docs/tour/make.py` would write now."""

import json
import re
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from make import notebook, pictures, with_output
from pages import Block, Runner, blocks

DOCS = Path(__file__).parent.parent / "docs"
NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.fixture(scope="module")
def page() -> str:
    return (DOCS / "tour.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tour(page: str) -> Mapping[str, Any]:
    """The names that the page's code leaves behind."""
    return with_output(page)[1]


def same_but_for_rounding(left: str, right: str) -> bool:
    """Whether texts agree, and numbers in them up to one in the last digit: processors round
    differently."""
    if NUMBER.sub("", left) != NUMBER.sub("", right):
        return False
    return all(
        abs(float(a) - float(b)) < 1.5 * 0.1 ** len(a.partition(".")[2])
        for a, b in zip_longest(NUMBER.findall(left), NUMBER.findall(right), fillvalue="nan")
    )


def test_pictures(tour: Mapping[str, Any], page: str) -> None:
    drawn = pictures(tour)
    assert sorted(drawn) == sorted(file.name for file in (DOCS / "tour").glob("*.svg"))
    assert set(re.findall(r"\(tour/(.*?\.svg)\)", page)) == set(drawn)
    for name, picture in drawn.items():
        kept = (DOCS / "tour" / name).read_text(encoding="utf-8")
        assert same_but_for_rounding(picture, kept), f"{name}: run docs/tour/make.py"


def test_a_picture_of_other_numbers_is_not_the_same() -> None:
    assert same_but_for_rounding('<rect opacity="0.31"/>', '<rect opacity="0.32"/>')
    assert not same_but_for_rounding('<rect opacity="0.31"/>', '<rect opacity="0.33"/>')
    assert not same_but_for_rounding('<rect opacity="0.31"/>', '<text opacity="0.31"/>')


def test_notebook_is_in_step(page: str) -> None:
    kept = (DOCS / "tour.ipynb").read_text(encoding="utf-8")
    assert kept == notebook(page), "run docs/tour/make.py"


def test_notebook_runs() -> None:
    cells = json.loads((DOCS / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    runner = Runner("docs/tour.ipynb")
    for cell in cells:
        if cell["cell_type"] == "code":
            printed = runner.run("".join(cell["source"]))
            shown = "".join("".join(output["text"]) for output in cell["outputs"])
            assert printed == shown


def test_each_step_explains_computes_and_shows(page: str) -> None:
    """Twelve steps; in each, prose comes first, then code and what it prints."""
    steps = re.split(r"^## \d+\. ", page, flags=re.MULTILINE)[1:]
    assert len(steps) == 12
    for step in steps:
        found: list[Block] = blocks(step)
        assert [block.language for block in found[:2]] == ["python", "text"]
        assert step[: found[0].begin].count(".") >= 2
