"""The report without a browser: what is in the file, and that it is what the trace says."""

import json
import re
import zlib
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from support.commands import Command, check_failure
from support.recorded import Recorded

import numpy_bloom
from numpy_bloom import Bloom, NumpyBloomError
from numpy_bloom import trace as trace_command
from numpy_bloom.study.lenses import attributions, logit_lens
from numpy_bloom.study.report import NAMES, write_report
from numpy_bloom.study.report.labels import Labels, is_right_to_left, readable

HOSTILE = "</script><script>alert(1)</script><!-- <b>&amp; يولد 人人"


@pytest.fixture(scope="module")
def bloom() -> Iterator[Bloom]:
    with numpy_bloom.load() as demo:
        yield demo


def embedded(page: str) -> dict[str, npt.NDArray[np.float64]]:
    """The page's arrays, read back by their attributes."""
    found = re.findall(
        r'id="array-(\S+)" data-dtype="(\w+)" data-shape="([\d ]+)">([^<]*)</script>', page
    )
    return {
        name: np.frombuffer(zlib.decompress(b64decode(text)), np.dtype(dtype).newbyteorder("<"))
        .reshape([int(size) for size in shape.split()])
        .astype(np.float64)
        for name, dtype, shape, text in found
    }


def embedded_facts(page: str) -> dict[str, object]:
    (text,) = re.findall(r'<script type="application/json" id="facts">(.*?)</script>', page)
    facts = json.loads(text)
    assert isinstance(facts, dict)
    return facts


def test_numbers_of_the_page_are_those_of_the_trace(bloom: Bloom, tmp_path: Path) -> None:
    logits, trace = bloom.trace("Todos los seres humanos nacen libres", names=NAMES)
    write_report(trace, logits, bloom.tokenizer, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    arrays, facts = embedded(page), embedded_facts(page)
    tokens = len(trace.token_ids)

    for block in range(bloom.config.num_hidden_layers):
        pattern = trace[f"blocks.{block}.attn.pattern"]
        rows = [pattern[:, query, : query + 1] for query in range(tokens)]
        np.testing.assert_allclose(
            arrays[f"pattern-{block}"] / 10_000, np.concatenate(rows, axis=1), atol=0.5001e-4
        )
        names = [stage["name"] for stage in facts["stages"]]  # type: ignore[attr-defined]
        assert {"resid_pre", "attn.q", "attn.z", "mlp.post", "resid_post"} <= set(names)
        for number, name in enumerate(names):
            rows_of_stage = trace[f"blocks.{block}.{name}"].reshape(tokens, -1)
            norms = np.linalg.norm(rows_of_stage.astype(np.float64), axis=1)
            np.testing.assert_allclose(arrays["norms"][block, number], norms, rtol=1e-6)

    lens = logit_lens(trace, top=5)
    np.testing.assert_array_equal(arrays["lens-ids"], lens.token_ids)
    np.testing.assert_array_equal(arrays["lens-log-p"], lens.log_probabilities)
    np.testing.assert_array_equal(arrays["lens-entropy"], lens.entropy)

    exact = logits.astype(np.float64)
    log_p = exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))
    order = np.argsort(-log_p, axis=1)[:, :10]
    np.testing.assert_array_equal(arrays["next-ids"], order)
    expected = np.take_along_axis(log_p, order, axis=1)
    np.testing.assert_allclose(arrays["next-log-p"], expected, rtol=1e-5, atol=1e-7)

    ends = (0, tokens - 1)
    for position, parts in zip(ends, attributions(trace, ends), strict=True):
        assert parts.token_id == arrays["next-ids"][position, 0]
        for name, expected in (
            ("embedding", parts.embedding),
            ("heads", parts.heads),
            ("biases", parts.attention_biases),
            ("mlps", parts.mlps),
            ("final-bias", parts.final_bias),
            ("logit", logits[position].max()),
        ):
            np.testing.assert_allclose(
                arrays[f"parts-{name}"][position], expected, rtol=1e-6, atol=1e-6
            )


def test_page_refers_to_nothing_outside_it(bloom: Bloom, tmp_path: Path) -> None:
    logits, trace = bloom.trace("Todos los seres", names=NAMES)
    write_report(trace, logits, bloom.tokenizer, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.findall(r"[a-z]+://", page)
    assert not re.findall(r"\s(?:src|href|action|poster|data)\s*=|@import|url\(|\bfetch\(", page)
    assert "{{" not in page and "/* page.css */" not in page and "/* scripts */" not in page


def test_markup_in_the_prompt_is_text(bloom: Bloom, tmp_path: Path) -> None:
    logits, trace = bloom.trace(HOSTILE, names=NAMES)
    write_report(trace, logits, bloom.tokenizer, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert embedded_facts(page)["text"] == HOSTILE
    arrays_and_facts = 1 + 12 + bloom.config.num_hidden_layers
    assert len(re.findall("<script", page)) == arrays_and_facts + 1
    assert "<!--" not in page.partition("<style>")[2]
    assert "alert(1)</script>" not in page


def test_page_of_64_tokens_takes_3_mb_at_most(bloom: Bloom, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(4, bloom.config.vocab_size, 64)
    logits, trace = bloom.trace(ids, names=NAMES)
    write_report(trace, logits, bloom.tokenizer, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size <= 3e6


def test_a_page_that_cannot_be_written_is_told_before_the_pass(command: Command) -> None:
    result = command(trace_command, "Todos", "--html", "/nowhere/page.html")
    check_failure(result, "trace", "cannot write /nowhere/page.html: No such file or directory")
    assert result.out == ""


def test_numbers_that_are_not_finite_have_no_page(bloom: Bloom, tmp_path: Path) -> None:
    logits, trace = bloom.trace("Todos", names=NAMES)
    logits[-1, 7] = np.nan
    with pytest.raises(NumpyBloomError, match="output is not finite"):
        write_report(trace, logits, bloom.tokenizer, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_what_is_lacking_or_cannot_be_written_is_one_error(bloom: Bloom, tmp_path: Path) -> None:
    logits, trace = bloom.trace("Todos", names=NAMES)
    with pytest.raises(NumpyBloomError, match=r"^cannot write .*nowhere.*: No such file"):
        write_report(trace, logits, bloom.tokenizer, tmp_path / "nowhere" / "page.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(NumpyBloomError, match=r"folder is no regular file; choose another"):
        write_report(trace, logits, bloom.tokenizer, tmp_path / "folder")
    path = tmp_path / "page.html"
    path.write_text("the page before", encoding="utf-8")
    logits, trace = bloom.trace("Todos", names=NAMES.replace("blocks.*.attn.z,", ""))
    with pytest.raises(NumpyBloomError, match=r"lacks blocks\.0\.attn\.z"):
        write_report(trace, logits, bloom.tokenizer, path)
    assert path.read_text(encoding="utf-8") == "the page before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "page.html"]


def test_model_whose_logits_are_no_sum_has_a_report(
    recorded_model: Callable[[str], Recorded], tmp_path: Path
) -> None:
    recorded = recorded_model("heads6-float16-postnorm")
    logits, trace = recorded.bloom.trace([1, 2, 3], names=NAMES)
    write_report(trace, logits, recorded.bloom.tokenizer, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    facts = embedded_facts(page)
    assert set(embedded(page)) >= {"norms", "pattern-0"} and "parts-logit" not in embedded(page)
    assert facts["labels"]["1"] == "#1"  # type: ignore[index]


@pytest.mark.parametrize(
    ("data", "label"),
    [
        (b" los", "␣los"),
        (b"\n\t \r", "↵⇥␣␍"),
        ("人".encode(), "人"),
        ("人".encode()[:2], "<0xE4><0xBA>"),
        ("ل".encode() + b"\xd8", "ل<0xD8>"),
        ("\u202e".encode(), "<U+202E>"),
        ("a\u202eb".encode(), "a<U+202E>b"),
        ("\u200c".encode(), "<U+200C>"),
        ("می\u200cشود".encode(), "می\u200cشود"),
        ("\u00a0\u0000".encode(), "<U+00A0><U+0000>"),
        ("ा".encode(), "◌ा"),
        ("🙂".encode(), "🙂"),
    ],
)
def test_bytes_are_made_readable(data: bytes, label: str) -> None:
    assert readable(data) == label


def test_every_token_of_the_demo_has_a_visible_label(bloom: Bloom) -> None:
    labels = Labels(bloom.tokenizer)
    every = [labels(token_id) for token_id in range(bloom.config.vocab_size + 5)]
    bare = [re.sub("[\u200c\u200d]", "", label) for label in every]
    assert all(label.strip() and label.isprintable() and "\ufffd" not in label for label in bare)
    assert every[2] == "</s>"
    assert every[-1] == f"#{bloom.config.vocab_size + 4}"
    for token_id in bloom.encode("Todos los seres humanos"):
        assert every[token_id].replace("␣", " ") == bloom.decode([token_id])


def test_direction_is_that_of_the_first_letter() -> None:
    assert is_right_to_left("1. «يولد all")
    assert not is_right_to_left("1. all يولد")
    assert not is_right_to_left("123")
