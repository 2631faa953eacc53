"""Sampling against the logits processors that transformers' own `generate` would use."""

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from numpy_bloom.generation.sampling import SamplingOptions, next_token_distribution

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers_stages import Sizes, random_bloom  # noqa: E402 - needs torch

Floats = npt.NDArray[np.float32]

VOCABULARIES = (50, 250_880)
IDS = [3, 7, 7, 11, 20, 49, 3]
"""The sequence so far, with repetitions."""

ORDER = [
    "RepetitionPenaltyLogitsProcessor",
    "TemperatureLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "MinPLogitsWarper",
]
SCALING = ("repetition_penalty", "temperature")
ALL = {"repetition_penalty": 1.4, "temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.02}
SINGLE = [
    *({"repetition_penalty": value} for value in (0.7, 1.2, 5.0)),
    *({"temperature": value} for value in (0.5, 0.9, 2.5, 100.0)),
    *({"top_k": value} for value in (1, 2, 17, 50, 10_000, 1_000_000)),
    *({"top_p": value} for value in (1e-6, 0.1, 0.5, 0.9, 0.99, 0.999999, 1.0)),
    *({"min_p": value} for value in (0.0, 1e-4, 0.05, 0.5, 1.0)),
]
COMBINED = [
    ALL,
    {**ALL, "top_k": 1_000_000, "top_p": 0.999, "min_p": 1e-3},
    {**ALL, "repetition_penalty": 0.5, "temperature": 1.7, "top_k": 3},
    {"top_k": 20, "top_p": 0.5},
    {"temperature": 0.6, "min_p": 0.1},
    {"repetition_penalty": 1.1, "top_p": 0.8},
]


def logits(vocab: int, kind: str) -> Floats:
    """Random logits, of either sign; "tied" ones are whole numbers, each taken many times."""
    values = np.random.default_rng(vocab).normal(0.0, 3.0, vocab)
    values[IDS[:3]] = 5.0, -5.0, 0.0
    return (np.round(values) if kind == "tied" else values).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> Any:
    """Its `generate` is asked for the processors; they do not depend on its weights."""
    return random_bloom(Sizes(heads=1, blocks=1))


def processors(model: Any, options: dict[str, Any]) -> Any:
    """What `generate(do_sample=True, **options)` would apply to the logits."""
    config = transformers.GenerationConfig(do_sample=True, **{"top_k": 0, **options})
    return model._get_logits_processor(
        config,
        input_ids_seq_length=len(IDS),
        model_kwargs={"attention_mask": torch.ones(1, len(IDS), dtype=torch.long)},
    )


def run_processors(model: Any, options: dict[str, Any], values: Floats) -> Floats:
    """The scores that are left of logits; -inf is what was ruled out."""
    scores = torch.from_numpy(values.copy())[None]
    return processors(model, options)(torch.tensor([IDS]), scores)[0].numpy()


def exact_softmax(scores: Floats) -> npt.NDArray[np.float64]:
    """In float64: torch's own float32 softmax is off by 5e-5 with 250,880 entries."""
    exponentials = np.exp(scores.astype(np.float64) - scores.max())
    return exponentials / exponentials.sum()


def check(model: Any, values: Floats, options: dict[str, Any]) -> None:
    """The kept set and the probabilities are the same.

    Where the border of top-p falls among equal logits, the sort in torch, which is not stable,
    decides which of them are kept; then only their number is compared.
    """
    ours = next_token_distribution(values, IDS, SamplingOptions(**{"temperature": 1.0, **options}))
    assert ours.dtype == np.float32
    scores = run_processors(model, options, values)
    kept, expected = np.isfinite(scores), exact_softmax(scores)
    assert (expected[kept] > 1e-30).all(), "too far apart for the kept set to be seen"
    if "top_p" in options:
        scaled = {name: options[name] for name in SCALING if name in options}
        before = run_processors(model, scaled, values)
        np.testing.assert_array_equal(np.sort(before[ours > 0]), np.sort(before[kept]))
        ours, expected = np.sort(ours), np.sort(expected)
    else:
        np.testing.assert_array_equal(ours > 0, kept)
    np.testing.assert_allclose(ours, expected, rtol=5e-6, atol=0)


@pytest.mark.parametrize("kind", ["random", "tied"])
@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("options", SINGLE + COMBINED, ids=str)
def test_distribution(model: Any, options: dict[str, Any], vocab: int, kind: str) -> None:
    check(model, logits(vocab, kind), options)


@pytest.mark.parametrize("value", [-3.0, 0.0, 3.0])
@pytest.mark.parametrize("options", [*SINGLE, ALL], ids=str)
def test_all_logits_equal(model: Any, options: dict[str, Any], value: float) -> None:
    check(model, np.full(50, value, dtype=np.float32), options)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"), list(product((False, True), repeat=4))
)
def test_order_is_that_of_generate(
    model: Any, temperature: bool, top_k: bool, top_p: bool, min_p: bool
) -> None:
    """Whatever options are given, `generate` applies them in this order, and so do we."""
    given = dict(zip(list(ALL)[1:], (temperature, top_k, top_p, min_p), strict=True))
    options = {name: ALL[name] for name in ALL if given.get(name, True)}
    names = [type(processor).__name__ for processor in processors(model, options)]
    assert names == [name for name, option in zip(ORDER, ALL, strict=True) if option in options]
    check(model, logits(50, "random"), options)


@pytest.mark.parametrize(
    "order", [(1, 2, 0, 3, 4), (0, 2, 3, 1, 4), (0, 1, 3, 2, 4), (0, 1, 2, 4, 3)]
)
def test_another_order_would_be_noticed(model: Any, order: tuple[int, ...]) -> None:
    """Penalty after top-k, temperature after top-p, top-k and top-p, top-p and min-p swapped.

    (Penalty and temperature may change places, and temperature and top-k: it is the same.)
    """
    options = {**ALL, "temperature": 1.5, "top_k": 8, "top_p": 0.7, "min_p": 0.3}
    values = np.random.default_rng(13).normal(0.0, 3.0, 50).astype(np.float32)
    check(model, values, options)
    steps, scores = list(processors(model, options)), torch.from_numpy(values)[None]
    for step in order:
        scores = steps[step](torch.tensor([IDS]), scores)
    other = exact_softmax(scores[0].numpy())
    assert np.abs(other - exact_softmax(run_processors(model, options, values))).max() > 1e-3
