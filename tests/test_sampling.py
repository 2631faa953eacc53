"""Sampling: each step against a slow reference in plain Python, options, order, and the draw."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from numpy_bloom.errors import OptionError
from numpy_bloom.generation.sampling import (
    SamplingOptions,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    likeliest,
    log_probability,
    next_token_distribution,
    penalize_repetition,
)
from numpy_bloom.model.primitives import log_softmax

Floats = npt.NDArray[np.float32]
RULED_OUT = -math.inf


def random_logits(size: int = 200, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


def probabilities(logits: Sequence[float]) -> list[float]:
    exponentials = [math.exp(logit - max(logits)) for logit in logits]
    return [exponential / math.fsum(exponentials) for exponential in exponentials]


def slow_penalty(logits: Sequence[float], ids: Sequence[int], penalty: float) -> list[float]:
    seen = {i: logits[i] * penalty if logits[i] < 0 else logits[i] / penalty for i in ids}
    return [seen.get(i, logit) for i, logit in enumerate(logits)]


def slow_top_k(logits: Sequence[float], k: int) -> list[float]:
    best = sorted(logits, reverse=True)[:k]
    return [logit if logit in best else RULED_OUT for logit in logits]


def slow_top_p(logits: Sequence[float], p: float) -> list[float]:
    shares = probabilities(logits)
    kept: set[int] = set()
    for i in sorted(range(len(logits)), key=lambda i: -shares[i]):
        if math.fsum(shares[j] for j in kept) >= p:
            break
        kept.add(i)
    return [logit if i in kept else RULED_OUT for i, logit in enumerate(logits)]


def slow_min_p(logits: Sequence[float], p: float) -> list[float]:
    shares = probabilities(logits)
    return [
        logit if share >= p * max(shares) else RULED_OUT
        for logit, share in zip(logits, shares, strict=True)
    ]


def check(found: Floats, expected: Sequence[float]) -> None:
    """Six float32 operations in a row err by far less than 1e-6."""
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("penalty", [0.5, 1.3, 20.0])
def test_repetition_penalty(penalty: float, seed: int) -> None:
    logits = random_logits(seed=seed)
    before = logits.copy()
    ids = [3, 7, 7, 199, 0, 3, int(logits.argmin()), int(logits.argmax())]
    check(penalize_repetition(logits, ids, penalty), slow_penalty(logits.tolist(), ids, penalty))
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [1, 2, 50, 199, 200, 10**9])
def test_top_k(k: int, seed: int) -> None:
    logits = random_logits(seed=seed)
    check(keep_top_k(logits, k), slow_top_k(logits.tolist(), k))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.99])
def test_top_p(p: float, seed: int) -> None:
    logits = random_logits(seed=seed)
    check(keep_top_p(logits, p), slow_top_p(logits.tolist(), p))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("p", [0.0, 0.001, 0.05, 0.5, 1.0])
def test_min_p(p: float, seed: int) -> None:
    logits = random_logits(seed=seed)
    check(keep_min_p(logits, p), slow_min_p(logits.tolist(), p))


def test_ties() -> None:
    logits = np.array([1, 3, 2, 3, 2, 0], dtype=np.float32)
    assert np.isfinite(keep_top_k(logits, 1)).tolist() == [False, True, False, True, False, False]
    assert np.isfinite(keep_top_k(logits, 3)).tolist() == [False, True, True, True, True, False]
    assert np.isfinite(keep_min_p(logits, 1.0)).tolist() == [False, True, False, True, False, False]
    assert int(np.isfinite(keep_top_p(logits, 1e-6)).sum()) == 1
    greedy = next_token_distribution(logits, [], SamplingOptions())
    assert greedy.tolist() == [0, 1, 0, 0, 0, 0]  # the first of the likeliest
    flat = np.zeros(10, dtype=np.float32)
    assert int(np.isfinite(keep_top_p(flat, 0.55)).sum()) == 6


@pytest.mark.parametrize("seed", SEEDS)
def test_all_options_in_their_order(seed: int) -> None:
    logits = random_logits(seed=seed)
    ids = [1, 5, 5, 8, int(logits.argmax())]
    options = SamplingOptions(1.7, 40, 0.8, 0.05, repetition_penalty=1.5)
    expected = slow_penalty(logits.tolist(), ids, 1.5)
    expected = [logit / 1.7 for logit in expected]
    expected = slow_min_p(slow_top_p(slow_top_k(expected, 40), 0.8), 0.05)
    found = next_token_distribution(logits, ids, options)
    check(found, probabilities(expected))
    assert abs(float(found.sum()) - 1) < 1e-6


# Each pair of steps, on logits where swapping the two gives another result.
ORDER = [
    # The penalty takes token 0 behind token 1 before only one is kept.
    ([4.0, 3.0], [0], {"top_k": 1, "repetition_penalty": 2.0}, [0, 1]),
    # At temperature 2 the likeliest token has only 0.62, less than top_p asks for.
    ([1.0, 0.0], [], {"temperature": 2.0, "top_p": 0.7}, [0.6225, 0.3775]),
    # At temperature 2 the second has 0.61 of the likeliest; without, 0.37.
    ([1.0, 0.0], [], {"temperature": 2.0, "min_p": 0.5}, [0.6225, 0.3775]),
    # Of the two that are kept the first has half; of all four it has a third.
    ([2.0, 2.0 - 1e-3, 1.5, 1.5], [], {"top_k": 2, "top_p": 0.5}, [1, 0, 0, 0]),
    # 0.8 takes three of four tokens, but two of the three that min_p keeps.
    ([2.0, 0.55, 0.5, 0.0], [], {"top_p": 0.8, "min_p": 0.2}, [0.6860, 0.1609, 0.1531, 0]),
]


@pytest.mark.parametrize(("logits", "ids", "options", "expected"), ORDER)
def test_order_of_steps(
    logits: list[float], ids: list[int], options: dict[str, Any], expected: list[float]
) -> None:
    found = next_token_distribution(
        np.array(logits, dtype=np.float32), ids, SamplingOptions(**options)
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.0),
        ({"repetition_penalty": 1.2}, 0.0),
        ({"seed": 3}, 0.0),
        ({"top_k": 5}, 1.0),
        ({"top_p": 0.9}, 1.0),
        ({"min_p": 0.1}, 1.0),
        ({"temperature": 0.7, "top_k": 5}, 0.7),
        ({"temperature": 0.0, "top_k": 5}, 0.0),
    ],
)
def test_default_temperature(options: dict[str, Any], expected: float) -> None:
    assert SamplingOptions(**options).effective_temperature == expected


@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"top_p": 1.0}, {"min_p": 0.0}])
def test_options_that_change_nothing(options: dict[str, Any]) -> None:
    logits = random_logits()
    found = next_token_distribution(logits, [1, 2], SamplingOptions(**options))
    check(found, probabilities(logits.tolist()))


def test_greedy() -> None:
    logits = random_logits()
    for options in (SamplingOptions(), SamplingOptions(0.0, top_k=9, top_p=0.9, min_p=0.1)):
        found = next_token_distribution(logits, [], options)
        assert np.flatnonzero(found).tolist() == [int(logits.argmax())]
        assert found.dtype == np.float32
        assert float(found.sum()) == 1
    top = int(logits.argmax())
    penalized = next_token_distribution(logits, [top], SamplingOptions(repetition_penalty=100.0))
    assert penalized[top] == 0


@pytest.mark.parametrize("penalty", [1e-300, 1e-40, 0.5, 1.0, 1.3, 20.0, 1e300])
def test_the_likeliest_is_what_is_certain_at_temperature_0(penalty: float) -> None:
    options = SamplingOptions(repetition_penalty=penalty)
    for seed in SEEDS:
        logits = random_logits(seed=seed).round(1)  # some are equal
        ids = np.argsort(logits)[-4:]
        expected = next_token_distribution(logits, ids, options)
        assert likeliest(logits, ids, options) == int(expected.argmax())


@pytest.mark.parametrize("size", [1, 200, 250_880])
def test_log_probability_of_one_token(size: int) -> None:
    logits = random_logits(size)
    for token_id in (0, size // 3, size - 1, int(logits.argmax())):
        assert log_probability(logits, token_id) == float(log_softmax(logits)[token_id])


@pytest.mark.parametrize("shift", [0.0, 50.0, -50.0])
@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-40, 1e-20, 1e20, 1e300])
def test_extreme_temperatures(temperature: float, shift: float) -> None:
    """Towards 0 the likeliest token is certain, towards infinity all are equally likely."""
    logits = np.array([-1, 0, -2, -3], dtype=np.float32) + np.float32(shift)
    found = next_token_distribution(logits, [], SamplingOptions(temperature, top_k=4))
    expected = [0, 1, 0, 0] if temperature < 1 else [0.25] * 4
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("penalty", [1e-300, 1e-40, 1e40, 1e300])
def test_extreme_penalties(penalty: float) -> None:
    logits = np.array([1, -1, 0, 2], dtype=np.float32)
    for ids in ([0], [1], [2], [0, 1, 2, 3]):
        options = SamplingOptions(1.0, repetition_penalty=penalty)
        found = next_token_distribution(logits, ids, options)
        assert np.isfinite(found).all()
        assert abs(float(found.sum()) - 1) < 1e-6


NAN, INF = math.nan, math.inf
OUT_OF_RANGE = [
    ("temperature", [-0.1, NAN, INF, -INF], "[0, inf)"),
    ("top_k", [0, -1, 2.5, NAN], "[1, inf), whole"),
    ("top_p", [0.0, -0.1, 1.1, NAN, INF], "(0, 1]"),
    ("min_p", [-0.1, 1.1, NAN, INF], "[0, 1]"),
    ("repetition_penalty", [0.0, -1.0, NAN, INF], "(0, inf)"),
    ("seed", [-1, 0.5, NAN], "[0, inf), whole"),
]


@pytest.mark.parametrize(
    ("name", "value", "interval"),
    [(name, value, interval) for name, values, interval in OUT_OF_RANGE for value in values],
)
def test_out_of_range(name: str, value: float, interval: str) -> None:
    with pytest.raises(OptionError) as error:
        SamplingOptions(**{name: value})  # type: ignore[arg-type]
    assert str(error.value) == f"{name} is {value}; expected a value in {interval}"


@pytest.mark.parametrize(("name", "interval"), [(name, ends) for name, _, ends in OUT_OF_RANGE])
def test_texts_are_no_numbers(name: str, interval: str) -> None:
    with pytest.raises(OptionError) as error:
        SamplingOptions(**{name: "1"})  # type: ignore[arg-type]
    assert str(error.value) == f"{name} is '1'; expected a value in {interval}"


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0, "top_k": 1, "top_p": 1e-9, "min_p": 0.0, "repetition_penalty": 1e-9},
        {"temperature": 99.0, "top_k": 10**9, "top_p": 1.0, "min_p": 1.0, "seed": 0},
        {"top_k": np.int64(3), "seed": 2**70},
    ],
)
def test_ends_of_the_ranges(options: dict[str, Any]) -> None:
    assert SamplingOptions(**options)


SHARES = np.array([0.0, 0.02, 0.0, 0.3, 0.18, 0.5, 0.0, 0.0], dtype=np.float32)


def test_frequencies_of_draws() -> None:
    """Chi-square: with four outcomes it exceeds 16.27 once in a thousand times by chance."""
    random = np.random.default_rng(1)
    drawn = np.bincount([draw(SHARES, random) for _ in range(10_000)], minlength=len(SHARES))
    possible = SHARES > 0
    assert not drawn[~possible].any()
    expected = 10_000 * SHARES[possible].astype(np.float64)
    assert float((np.square(drawn[possible] - expected) / expected).sum()) < 16.27


class Fixed(np.random.Generator):
    """A source of randomness that always gives one number."""

    def __init__(self, value: float) -> None:
        super().__init__(np.random.PCG64(0))
        self._value = value

    def random(self, *_args: Any, **_options: Any) -> Any:
        return self._value


@pytest.mark.parametrize("point", [0.0, 0.02, 0.32, 0.5, math.nextafter(1, 0)])
@pytest.mark.parametrize("scale", [1, 1e-6, 1 + 1e-6])
def test_impossible_tokens_are_never_drawn(point: float, scale: float) -> None:
    shares = SHARES * np.float32(scale)  # a sum that rounding left beside 1
    assert shares[draw(shares, Fixed(point))] > 0


def test_seed_makes_draws_repeatable() -> None:
    def draws(seed: int) -> list[int]:
        random = np.random.default_rng(seed)
        return [draw(SHARES, random) for _ in range(50)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)
