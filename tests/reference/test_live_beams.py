"""Beam search against that of transformers' `generate`, on 50 random models."""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import transformers_stages as ts  # noqa: E402 - needs torch
from live import Case, Pair  # noqa: E402

if TYPE_CHECKING:
    from live import Opener

MODELS = 50
BEAMS = (2, 3, 4, 5)
SETTINGS = list(product((1.0, 0.0, 0.6, 2.0, -1.0), (False, True)))
"""Length penalty and early stopping."""
SETTINGS_EACH = 3
"""How many of them, in turns, for each model and number of beams."""
NEW = 12

SCORE_TOLERANCE = 2e-5
"""Relative to max(1, score). Twelve log-probabilities, each with an error of 1e-6 or so."""


@dataclass(frozen=True)
class Found:
    """What a search says: the new tokens, their score, and how many passes it made."""

    ids: list[int]
    score: float
    passes: int


def sizes(seed: int) -> ts.Sizes:
    numbers = np.random.default_rng(seed)
    return ts.Sizes(
        heads=int(numbers.choice([1, 2, 3, 4, 6, 8])),
        head_size=int(numbers.choice([4, 8, 12])),
        blocks=1 + seed % 2,
        vocab=int(numbers.integers(10, 90)),
        post_layernorm=seed % 3 == 0,
        untied=seed % 4 != 3,
        seed=seed,
    )


def transformers_search(pair: Pair, prompt: list[int], **options: Any) -> Found:
    ids = torch.tensor([prompt])
    found = pair.reference.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=list(pair.bloom.config.eos_token_ids) or None,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    new = found.sequences[0, len(prompt) :].tolist()
    return Found(new, float(found.sequences_scores[0]), len(found.scores))


def our_search(pair: Pair, prompt: list[int], **options: Any) -> Found:
    search = pair.bloom.beam_search(prompt, max_new_tokens=NEW, **options)
    ids = [token.id for token in search]
    assert search.score is not None
    ends = ids[-1] in pair.bloom.config.eos_token_ids
    assert search.finish_reason == ("eos" if ends else "length")
    return Found(ids, search.score, search.stats.passes)


def opened(opener: "Opener", seed: int, prompt: list[int]) -> Pair:
    """A model whose ends of text, one to three, are met sooner or later."""

    def sharpen(model: Any) -> None:
        model.lm_head.weight *= 4 if not model.config.tie_word_embeddings else 1

    def never_end(config: Any) -> None:
        config["eos_token_id"] = None

    case = Case(sizes(seed))
    pair = opener.edited(case, edit_model=sharpen, edit_config=never_end)
    numbers = np.random.default_rng(1000 + seed)
    likely = transformers_search(pair, prompt, num_beams=3, repetition_penalty=1.2).ids
    likely = list(dict.fromkeys(likely))
    ends = [likely[int(numbers.integers(0, 8)) % len(likely)]]
    ends += numbers.choice(case.sizes.vocab, seed % 3, replace=False).tolist()
    ends = list(dict.fromkeys(ends))
    pair.bloom.config = replace(pair.bloom.config, eos_token_ids=tuple(ends))
    return pair


def test_ids_are_those_of_transformers(pair: "Opener") -> None:
    """All numbers of beams on every model, and all settings with every number of beams."""
    tried, ends, told = Counter[Any](), Counter[Any](), Counter[Any]()
    for seed in range(MODELS):
        numbers = np.random.default_rng(seed)
        vocab = sizes(seed).vocab
        prompt = numbers.integers(0, vocab, int(numbers.integers(1, 12))).tolist()
        both = opened(pair, seed, prompt)
        for beams, turn in product(BEAMS, range(SETTINGS_EACH)):
            penalty, early_stopping = SETTINGS[(7 * seed + 3 * beams + turn) % len(SETTINGS)]
            options = {
                "num_beams": beams,
                "length_penalty": penalty,
                "early_stopping": early_stopping,
                "repetition_penalty": 1.3 if (seed + beams + turn) % 5 == 0 else 1.0,
            }
            expected = transformers_search(both, prompt, **options)
            found = our_search(both, prompt, **options)
            assert found.ids == expected.ids, (seed, options)
            assert found.passes == expected.passes, (seed, options)
            assert found.score == pytest.approx(
                expected.score, rel=SCORE_TOLERANCE, abs=SCORE_TOLERANCE
            )
            tried[beams, penalty, early_stopping] += 1
            ends[len(found.ids), found.passes] += 1
            told[seed, tuple(found.ids)] += 1
    assert len(tried) == len(BEAMS) * len(SETTINGS)
    assert len(told) > 2 * MODELS  # the options make a difference
    assert sum(times for (tokens, _), times in ends.items() if tokens < NEW) > MODELS
    assert sum(times for (tokens, _), times in ends.items() if tokens == NEW) > MODELS
    assert sum(times for (_, passes), times in ends.items() if 1 < passes < NEW) > MODELS
    assert sum(times for (tokens, passes), times in ends.items() if tokens < passes) > MODELS
