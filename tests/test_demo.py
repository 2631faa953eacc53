"""The demo model recites the Declaration: Article 1 from its first words, in BLOOM's languages."""

import json
from pathlib import Path

import pytest
from support.conversions import demo_checkpoint

import numpy_bloom
from conversion import convert
from numpy_bloom.bloom import Bloom
from numpy_bloom.loading import DEMO

LANGUAGES = json.loads(
    (Path(__file__).parent / "reference" / "demo_languages.json").read_text(encoding="utf-8")
)


def not_completed(model: Bloom) -> list[str]:
    """The languages in which the model does not say Article 1, or not only that."""
    openings = [language["opening"] for language in LANGUAGES]
    failed = []
    generations = model.generate_batch(openings, max_new_tokens=300)
    for language, generation in zip(LANGUAGES, generations, strict=True):
        list(generation)
        recited = language["opening"] + generation.text
        if recited != language["article"] or generation.finish_reason != "eos":
            failed.append(language["language"])
    return failed


def test_article_1_is_completed(capsys: pytest.CaptureFixture[str]) -> None:
    """In all languages at once, and in some of them alone."""
    with numpy_bloom.load(threads=1) as model:
        failed = not_completed(model)
        for language in LANGUAGES[::8]:
            generation = model.generate(language["opening"], max_new_tokens=300)
            list(generation)
            assert language["opening"] + generation.text == language["article"]
    completed = len(LANGUAGES) - len(failed)
    with capsys.disabled():
        print(f"\nArticle 1 completed in {completed} of {len(LANGUAGES)} languages")
    assert failed == []


def test_article_1_in_int8(tmp_path: Path) -> None:
    """A greedy continuation of 300 tokens may change at a near tie, but few do."""
    convert(demo_checkpoint(tmp_path / "source"), tmp_path / "int8", "int8")
    with numpy_bloom.load(tmp_path / "int8", threads=1) as model:
        assert len(not_completed(model)) <= 2


def test_the_demo_model_is_small() -> None:
    assert sum(file.stat().st_size for file in DEMO.iterdir()) <= 8_000_000
