"""Every stage of our forward pass against the installed transformers, and all ways to load it."""

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.parity import TOLERANCE

from numpy_bloom.study.stages import stage_names

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import transformers_stages as ts  # noqa: E402 - needs torch
from live import CASES, DTYPES, Case, Pair  # noqa: E402

if TYPE_CHECKING:
    from live import Opener

LONG_TOLERANCE = 2e-4
"""At 2,100 tokens: the reference adds slope times position, up to 525, to scores around 1."""


def prompt(tokens: int, vocab: int = 101) -> list[int]:
    return np.random.default_rng(tokens).integers(0, vocab, tokens).tolist()


def check(pair: Pair, tokens: int, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Compare all stages of a pass; returns the reference's."""
    ids = prompt(tokens, pair.bloom.config.vocab_size)
    reference = ts.stages(pair.reference, ids)
    _, trace = pair.bloom.trace(ids)
    assert list(trace) == stage_names(pair.bloom.config.num_hidden_layers)
    assert trace.first_divergence(reference, tolerance) is None
    return reference


def test_cases_cover_every_combination() -> None:
    assert {(case.dtype, case.layout) for case in CASES} == set(product(DTYPES, ts.LAYOUTS))
    assert {(case.sizes.heads, case.sizes.post_layernorm) for case in CASES} == set(
        product((1, 2, 6, 8, 12, 16, 112), (False, True))
    )


@pytest.mark.parametrize("tokens", [1, 2, 7, 50, 300])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_stage(pair: "Opener", case: Case, tokens: int) -> None:
    check(pair(case), tokens)


def test_every_stage_of_a_long_prompt(pair: "Opener") -> None:
    check(pair(Case(ts.Sizes(heads=6, blocks=1, seed=3))), 2100, LONG_TOLERANCE)


def test_activations_beyond_float16(pair: "Opener") -> None:
    def amplify(model: Any) -> None:
        model.transformer.h[0].mlp.dense_4h_to_h.weight *= 1e5

    found = check(pair.edited(Case(ts.Sizes(heads=12), "bfloat16"), edit_model=amplify), 20)
    assert np.abs(found["blocks.0.resid_post"]).max() > 65504


@pytest.mark.parametrize("tied_in_config", [False, True])
@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_untied_head(pair: "Opener", layout: str, tied_in_config: bool) -> None:
    """A head that differs is the head, whatever the config says: transformers 5 does the same."""

    def edit(config: Any) -> None:
        config["tie_word_embeddings"] = tied_in_config

    opened = pair.edited(Case(ts.Sizes(heads=6, untied=True), layout=layout), edit_config=edit)
    body, head = opened.reference.transformer, opened.reference.lm_head
    assert not torch.equal(head.weight, body.word_embeddings.weight)
    check(opened, 7)


@pytest.mark.parametrize("hidden_size", ["hidden_size", "n_embed"])
@pytest.mark.parametrize("heads", ["num_attention_heads", "n_head"])
@pytest.mark.parametrize("layers", ["num_hidden_layers", "n_layer"])
def test_config_aliases(pair: "Opener", hidden_size: str, heads: str, layers: str) -> None:
    def rename(config: Any) -> None:
        config[hidden_size] = config.pop("hidden_size")
        config[heads] = config.pop("n_head")
        config[layers] = config.pop("n_layer")

    check(pair.edited(Case(ts.Sizes(heads=6, blocks=3)), edit_config=rename), 7)


@pytest.mark.parametrize(
    ("numbers", "source", "option"),
    [
        *product(("float16", "bfloat16"), ("float32",), ("keep", "float32")),
        ("bfloat16", "bfloat16", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("bfloat16", "float32", "bfloat16"),
        ("float16", "float16", "float32"),
        ("float16", "float16", "float16"),
        ("float16", "float32", "float16"),
    ],
)
def test_conversions_that_are_exact(pair: "Opener", numbers: str, source: str, option: str) -> None:
    """Numbers that both types have survive the conversion, so every stage agrees."""

    def round_all(model: Any) -> None:
        for parameter in model.parameters():
            parameter.copy_(parameter.to(getattr(torch, numbers)))

    opened = pair.edited(Case(ts.Sizes(heads=12), source), option, edit_model=round_all)
    stored = {opened.model.parameters.word_embeddings.format.dtype}
    stored |= {
        block.mlp.dense_h_to_4h.weight.format.dtype for block in opened.model.parameters.blocks
    }
    assert stored == {source if option == "keep" else option}
    check(opened, 7)
