"""What the tests of prompt caches share."""

from pathlib import Path
from typing import Any

import pytest

from numpy_bloom.bloom import Bloom
from numpy_bloom.running.model import Model
from support.checkpoints import byte_ids

ENDLESS: dict[str, Any] = {"lm_head": "different", "config": {"eos_token_id": None}}
"""For a checkpoint that never ends a text by itself, and does not say one token for ever."""
TINY: dict[str, Any] = {"heads": 2, "hidden": 8, **ENDLESS}
PROMPT = byte_ids("Todos los")
NEW, BEGUN = 8, 5
"""Tokens of the text that `again` makes, and how many of them are in a file that was begun."""


def said(generation: Any) -> list[tuple[int, float, str]]:
    return [(token.id, token.logprob, token.text) for token in generation]


def ids_of(generation: Any) -> list[int]:
    return [token.id for token in generation]


def again(model: Bloom, file: Path, **options: Any) -> list[int]:
    """The text after PROMPT, with what the file has of it."""
    return ids_of(model.generate(PROMPT, max_new_tokens=NEW, prompt_cache=file, **options))


def cut_off(model: Bloom, file: Path, prompt: Any, tokens: int, **options: Any) -> None:
    """A run that is left after so many tokens."""
    generation = model.generate(prompt, prompt_cache=file, **options)
    for _ in range(tokens):
        next(generation)


def count_fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each pass takes in, from now on."""
    lengths: list[int] = []
    run = Model.run

    def counted(self: Model, sequences: Any, *arguments: Any, **options: Any) -> Any:
        lengths.append(sum(len(ids) for ids in sequences))
        return run(self, sequences, *arguments, **options)

    monkeypatch.setattr(Model, "run", counted)
    return lengths
