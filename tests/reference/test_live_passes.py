"""Generation, prompts in passes and packed sequences, against the installed transformers."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.parity import TOLERANCE, filled_cache, run_in_passes

from numpy_bloom.study.compare import deviation

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import transformers_stages as ts  # noqa: E402 - needs torch
from live import CASES, Case  # noqa: E402

if TYPE_CHECKING:
    from live import Opener

NEW_TOKENS = 64
SAFE_MARGIN = 5 * TOLERANCE
"""Logits that lead by more cannot change places with the second, whatever deviation is allowed."""


def prompt(tokens: int) -> list[int]:
    return np.random.default_rng(tokens).integers(0, 101, tokens).tolist()


@pytest.mark.parametrize(("penalty", "different"), [(1.0, 5), (2.0, 20)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_greedy_generation(pair: "Opener", case: Case, penalty: float, different: int) -> None:
    """All 64 tokens are the same. Left alone, random models go round in circles; the repetition
    penalty leads them out."""
    opened, ids = pair(case), prompt(7)
    expected, margin = ts.greedy(opened.reference, ids, NEW_TOKENS, repetition_penalty=penalty)
    assert margin > SAFE_MARGIN
    assert len(set(expected)) >= different
    tokens = opened.bloom.generate(ids, max_new_tokens=NEW_TOKENS, repetition_penalty=penalty)
    assert [token.id for token in tokens] == expected


@pytest.mark.parametrize("place", ["config", "generation_config"])
def test_end_of_text(pair: "Opener", place: str) -> None:
    """Both stop at the first of several end tokens, whichever file names them."""
    ids, options = prompt(7), {"repetition_penalty": 2.0}
    case = replace(CASES[0], layout="bin" if place == "config" else "safetensors")
    tokens, _ = ts.greedy(pair(case).reference, ids, NEW_TOKENS, **options)
    assert 0 < tokens.index(tokens[10]) < tokens.index(tokens[20])
    ends = [tokens[20], tokens[10]]

    opened = pair.edited(
        case, edit_model=lambda it: setattr(getattr(it, place), "eos_token_id", ends)
    )
    expected, _ = ts.greedy(opened.reference, ids, NEW_TOKENS, **options)
    generation = opened.bloom.generate(ids, max_new_tokens=NEW_TOKENS, **options)
    assert [token.id for token in generation] == expected == tokens[: tokens.index(tokens[10]) + 1]
    assert generation.finish_reason == "eos"


def splits(tokens: int) -> list[list[int]]:
    """Ways to cut a prompt into passes: of 1, 3 and 7 tokens, mixed, and at random."""
    regular = [[size] * (tokens // size) + [tokens % size] for size in (1, 3, 7)]
    mixed = [[1, 3, 7, tokens - 11], [tokens - 1, 1], [1, tokens - 1]]
    random = np.random.default_rng(tokens)
    for cuts in (1, 2, 5, 20):
        ends = np.sort(random.choice(np.arange(1, tokens), cuts, replace=False))
        mixed.append(np.diff([0, *ends, tokens]).tolist())
    return [[length for length in lengths if length] for lengths in regular + mixed]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_passes_of_any_length(pair: "Opener", case: Case) -> None:
    opened, ids = pair(case), prompt(50)
    expected = ts.logits(opened.reference, ids)
    for lengths in splits(50):
        logits = run_in_passes(opened.model, ids, lengths)
        assert deviation("logits", logits, expected) <= TOLERANCE, lengths


def test_long_prompt_in_passes(pair: "Opener") -> None:
    opened, ids = pair(CASES[8]), prompt(300)
    expected = ts.logits(opened.reference, ids)
    for lengths in ([299, 1], [7] * 42 + [6], [128, 128, 44]):
        logits = run_in_passes(opened.model, ids, lengths)
        assert deviation("logits", logits, expected) <= TOLERANCE, lengths


@pytest.mark.parametrize("case", CASES, ids=str)
def test_packed_sequences(pair: "Opener", case: Case) -> None:
    """Sequences of different lengths, some with a past, equal themselves alone and transformers;
    twice, so that what the first pass left in the caches is used."""
    opened = pair(case)
    model, texts = opened.model, [prompt(tokens) for tokens in (2, 10, 18, 22, 52, 37)]
    expected = [ts.logits(opened.reference, text) for text in texts]
    pasts = [0, 4, 0, 20, 1, 33]
    packed, alone = (
        [filled_cache(model, text[:past], 60) for text, past in zip(texts, pasts, strict=True)]
        for _ in range(2)
    )
    for ends in ([1, 9, 17, 21, 51, 36], [2, 10, 18, 22, 52, 37]):
        parts = [slice(past, end) for past, end in zip(pasts, ends, strict=True)]
        new = [np.array(text[part]) for text, part in zip(texts, parts, strict=True)]
        logits = model.run(new, packed, last=[len(ids) for ids in new])
        separate = [
            model.run([ids], [cache], last=[len(ids)])
            for ids, cache in zip(new, alone, strict=True)
        ]
        assert deviation("logits", logits, np.concatenate(separate)) <= TOLERANCE
        rows = [logits[part] for logits, part in zip(expected, parts, strict=True)]
        assert deviation("logits", logits, np.concatenate(rows)) <= TOLERANCE
        pasts = ends
