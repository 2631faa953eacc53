"""The demo model recites the Declaration: Article 1 from its first words, in BLOOM's languages."""

import json
from pathlib import Path

import pytest

import numpy_bloom
from numpy_bloom.bloom import DEMO

LANGUAGES = json.loads(
    (Path(__file__).parent / "reference" / "demo_languages.json").read_text(encoding="utf-8")
)


def test_article_1_is_completed(capsys: pytest.CaptureFixture[str]) -> None:
    failed = []
    with numpy_bloom.load() as model:
        for language in LANGUAGES:
            generation = model.generate(language["opening"], max_new_tokens=300)
            for _ in generation:
                pass
            recited = language["opening"] + generation.text
            if recited != language["article"] or generation.finish_reason != "eos":
                failed.append(language["language"])
    completed = len(LANGUAGES) - len(failed)
    with capsys.disabled():
        print(f"\nArticle 1 completed in {completed} of {len(LANGUAGES)} languages")
    assert failed == []


def test_the_demo_model_is_small() -> None:
    assert sum(file.stat().st_size for file in DEMO.iterdir()) <= 8_000_000
