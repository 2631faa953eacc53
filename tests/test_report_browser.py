"""The report in headless Chromium: it draws without errors or requests, shows the trace's numbers,
answers the keyboard, and fits narrow and wide windows.

Needs playwright (the extra `browser`) and Debian's chromium; playwright downloads no browser of its
own. Where either is absent these tests are skipped, except in CI (the variable CI is set).
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest

import numpy_bloom
from numpy_bloom.model.alibi import alibi_slopes
from numpy_bloom.study.lenses import LogitLens, attributions, logit_lens
from numpy_bloom.study.report import NAMES, write_report
from numpy_bloom.study.trace import Trace
from numpy_bloom.weights.dtypes import Floats

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run"
TEXT = "Todos los seres </script><!-- يولد 人人生而自由\n"
SIZES = (360, 1280, 1920)


class Traced(NamedTuple):
    """What the page was written from, and where it is."""

    path: Path
    trace: Trace
    logits: Floats
    lens: LogitLens


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    path = tmp_path_factory.mktemp("report") / "page.html"
    with numpy_bloom.load() as bloom:
        logits, trace = bloom.trace(TEXT, names=NAMES)
        write_report(trace, logits, bloom.tokenizer, path)
        yield Traced(path, trace, logits, logit_lens(trace))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists() and not os.environ.get("CI"):
        pytest.skip(f"no {CHROMIUM}")
    if not os.environ.get("CI"):
        pytest.importorskip("playwright.sync_api")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, traced: Traced) -> Iterator[Any]:
    """The report, drawn. After the test: no error, and no request but the file's."""
    troubles: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page.set_default_timeout(8000)
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: troubles.append(dialog.message))
    page.on("request", lambda request: troubles.append(request.url))
    page.goto(traced.path.as_uri())
    wait_until_drawn(page, len(traced.trace.token_ids) - 1, 0, 0)
    yield page
    page.close()
    assert troubles == [traced.path.as_uri()]


def wait_until_drawn(page: Any, position: int, block: int, head: int) -> None:
    page.wait_for_selector(f'body[data-drawn="{position} {block} {head}"]')


def column(page: Any, table: str, number: int) -> list[str]:
    """The texts of one column of a table's body, its rows' headers being column 0."""
    cells = page.locator(f"#{table} tbody tr > :nth-child({number + 1})")
    return [text.replace("\u2212", "-").strip() for text in cells.all_inner_texts()]


def focused(page: Any) -> str:
    return str(page.evaluate("document.activeElement.id || document.activeElement.parentNode.id"))


def test_shown_numbers_are_those_of_the_trace(page: Any, traced: Traced) -> None:
    trace, last = traced.trace, len(traced.trace.token_ids) - 1
    page.select_option("#block", "2")
    page.select_option("#head", "5")
    wait_until_drawn(page, last, 2, 5)

    row = trace["blocks.2.attn.pattern"][5, last, ::-1]
    assert column(page, "row", 3) == [f"{share:.4f}" for share in row]
    slope = float(alibi_slopes(12)[5])
    biases = [-slope * distance for distance in range(last + 1)]  # ties, which JS rounds up
    shown_biases = [float(text) for text in column(page, "row", 2)]
    np.testing.assert_allclose(shown_biases, biases, rtol=0, atol=0.5001e-4)

    norms = [np.linalg.norm(trace[f"blocks.2.{name}"][last]) for name in column(page, "stages", 0)]
    assert column(page, "stages", 2) == [f"{norm:.4f}" for norm in norms]

    exact = traced.logits[last].astype(np.float64)
    log_p = np.sort(exact - np.log(np.exp(exact).sum()))[::-1][:10]
    assert column(page, "next", 4) == [f"{x:.4f}" for x in log_p]
    assert column(page, "next", 5) == [str(i) for i in np.argsort(-exact)[:10]]

    lens = traced.lens
    shown = page.locator("#lens td small").all_inner_texts()
    probabilities = np.exp(lens.log_probabilities[..., 0].astype(np.float64)).ravel()
    assert len(shown) == probabilities.size
    for text, p, entropy in zip(shown, probabilities, lens.entropy.ravel(), strict=True):
        digits = 2 if p < 0.1 else 1
        assert text == f"{100 * p:.{digits}f} % · {abs(entropy):.2f}"

    (parts,) = attributions(trace, [-1])
    foot = page.locator("#parts tfoot td:last-child").all_inner_texts()
    assert foot == [f"{float(page_sum(parts)):.4f}", f"{parts.logit:.4f}"]
    together = parts.heads.sum(axis=1) + parts.attention_biases + parts.mlps
    expected = [parts.embedding, *together, parts.final_bias]
    assert column(page, "parts", 4) == [f"{x:.4f}" for x in expected]
    seconds = [f"{s:.4f}" for s in trace.block_seconds]
    assert column(page, "bill", 3) == [*seconds, "\u2013"]


def page_sum(parts: Any) -> float:
    biases_and_mlps = parts.attention_biases.sum() + parts.mlps.sum()
    return float(parts.embedding + parts.heads.sum() + biases_and_mlps + parts.final_bias)


def test_attention_is_unpacked_block_by_block(browser: Any, traced: Traced) -> None:
    page = browser.new_page()
    page.add_init_script(
        "window.unpacked = 0; const Real = DecompressionStream;"
        "window.DecompressionStream = function (format) { unpacked += 1; return new Real(format); }"
    )
    page.goto(traced.path.as_uri())
    last = len(traced.trace.token_ids) - 1
    wait_until_drawn(page, last, 0, 0)
    at_start = page.evaluate("unpacked")
    assert at_start == page.locator('[id^="array-"]:not([id^="array-pattern-"])').count() + 1
    page.select_option("#block", "3")
    wait_until_drawn(page, last, 3, 0)
    page.select_option("#head", "7")
    wait_until_drawn(page, last, 3, 7)
    assert page.evaluate("unpacked") == at_start + 1
    page.close()


def test_text_is_shown_as_it_is(page: Any, traced: Traced) -> None:
    assert page.locator("#text").text_content() == TEXT
    tokens = page.locator("#tokens button").all_text_contents()
    assert tokens[0] == "Todos" and tokens[-1] == "↵"
    assert page.locator("main script, #text *").count() == 0


def test_every_control_works_by_keyboard(page: Any, traced: Traced) -> None:
    last = len(traced.trace.token_ids) - 1
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(focused(page))
    for control in ("position", "block", "head", "theme", "tokens", "heads"):
        assert control in reached
    assert page.evaluate(
        "[...document.querySelectorAll('button, select, .scroll')].every(e => e.tabIndex >= 0 || "
        "e.getAttribute('role') === 'radio' || e.id === 'lens-scroll')"
    )

    page.focus("#block")
    page.keyboard.press("ArrowDown")
    wait_until_drawn(page, last, 1, 0)
    page.focus("#head")
    page.keyboard.press("ArrowDown")
    wait_until_drawn(page, last, 1, 1)
    page.focus("#position")
    page.keyboard.press("ArrowUp")
    wait_until_drawn(page, last - 1, 1, 1)
    page.focus('#tokens [aria-checked="true"]')
    page.keyboard.press("ArrowLeft")
    wait_until_drawn(page, last - 2, 1, 1)
    page.keyboard.press("Home")
    wait_until_drawn(page, 0, 1, 1)
    page.focus("#lens td.chosen")
    page.keyboard.press("ArrowRight")
    wait_until_drawn(page, 1, 1, 1)
    page.keyboard.press("ArrowUp")
    page.wait_for_selector("#lens tbody tr:nth-child(4) td:nth-child(3).chosen:focus")
    assert "Layer 3, after token 1" in page.inner_text("#lens-detail")

    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.focus("#theme")
    page.keyboard.press("Enter")
    assert page.get_attribute("#theme", "aria-pressed") == "true"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_figures_are_saved_as_svg(page: Any) -> None:
    for figure in ("path", "attention", "norms", "entropy", "attribution"):
        with page.expect_download() as download:
            page.focus(f"#{figure} button")
            page.keyboard.press("Enter")
        assert download.value.suggested_filename.endswith(".svg")
        root = ElementTree.parse(download.value.path()).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        everything = ElementTree.tostring(root, encoding="unicode")
        assert "var(" not in everything and "light-dark" not in everything
        assert "class=" not in everything and "rgb(" in everything


@pytest.mark.parametrize("width", SIZES)
def test_page_fits_its_window(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_function(  # drawn anew for this width, and shown as large as drawn
        "() => [...document.querySelectorAll('figure svg')].every("
        "e => e.clientWidth === Number(e.getAttribute('width'))) && norms.clientWidth"
        " === norms.firstElementChild.clientWidth"
    )
    assert page.evaluate("document.documentElement.scrollWidth") == width
