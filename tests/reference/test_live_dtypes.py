"""Stored types against torch: every 16-bit pattern, and rounding to it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from numpy_bloom.weights.dtypes import STORED, all_finite, narrow, widen
from numpy_bloom.weights.linear import linear, lookup

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from live import Case, Opener  # noqa: E402 - needs torch
from transformers_stages import Sizes  # noqa: E402

HALVES = ("bfloat16", "float16")
PATTERNS = np.arange(1 << 16, dtype=np.uint16)
QUIET_BIT = np.uint32(1 << 22)
"""Tells a float32 NaN that signals from one that is quiet."""

Words = npt.NDArray[np.uint32]


def tensor(patterns: npt.NDArray[np.uint16], dtype: str) -> Any:
    return torch.from_numpy(patterns.view(np.int16).copy()).view(getattr(torch, dtype))


def words(values: Any) -> Words:
    """The bits of float32 numbers."""
    array: npt.NDArray[np.float32] = np.ascontiguousarray(values)
    return array.view(np.uint32)


def widened_by_torch(patterns: npt.NDArray[np.uint16], dtype: str) -> Words:
    return words(tensor(patterns, dtype).to(torch.float32).numpy())


@pytest.mark.parametrize("dtype", HALVES)
def test_every_pattern_widens_as_in_torch(dtype: str) -> None:
    """Bit by bit. One freedom is left: whether a signalling NaN of float16, which conversion
    refuses anyway, becomes a quiet one with the same payload, as IEEE 754 asks of arithmetic."""
    ours, theirs = (
        words(widen(PATTERNS.view(STORED[dtype]), dtype)),
        widened_by_torch(PATTERNS, dtype),
    )
    if dtype == "float16":
        nan = np.isnan(theirs.view(np.float32))
        assert nan.sum() == 2 * 1023
        ours[nan] |= QUIET_BIT
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", HALVES)
def test_every_finite_pattern_widens_in_the_model(pair: Opener, dtype: str) -> None:
    """Through conversion, from disk, by product with the identity and by looking up rows."""
    finite = np.isfinite(tensor(PATTERNS, dtype).to(torch.float32).numpy())
    patterns = np.where(finite, PATTERNS, 0).astype(np.uint16)
    columns = 128

    def fill(model: Any) -> None:
        model.to(getattr(torch, dtype))
        model.transformer.word_embeddings.weight.copy_(tensor(patterns, dtype).reshape(-1, columns))

    sizes = Sizes(heads=2, head_size=columns // 2, blocks=1, vocab=(1 << 16) // columns)
    model = pair.edited(Case(sizes, dtype), edit_model=fill).model
    expected = widened_by_torch(patterns, dtype).reshape(-1, columns)
    rows = lookup(model.parameters.word_embeddings, np.arange(len(expected)))
    np.testing.assert_array_equal(words(rows), expected)
    product = linear(np.eye(columns, dtype=np.float32), model.parameters.lm_head)
    # A sum with zeros, so that -0 becomes 0, and equal as a number is all that can be asked.
    np.testing.assert_array_equal(product.T, expected.view(np.float32))


def numbers() -> npt.NDArray[np.float32]:
    """Random bits, and around each float16 and bfloat16 its neighbours and the ties between."""
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 20, dtype=np.uint64)
    upper = PATTERNS.astype(np.uint32) << 16
    ties = [upper + offset for offset in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    halves = widened_by_torch(PATTERNS, "float16")
    ties += [halves + offset for offset in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x1FFF)]
    subnormal = np.linspace(-7e-5, 7e-5, 100_001, dtype=np.float32)  # of float16
    bits = np.concatenate([random.astype(np.uint32), *ties, words(subnormal)])
    return bits.view(np.float32)


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_as_in_torch(dtype: str) -> None:
    """Bit by bit; which NaN a NaN becomes depends, in torch too, on the processor."""
    values = numbers()
    nan = np.isnan(values)
    ours = narrow(values, dtype)
    theirs = torch.from_numpy(values.copy()).to(getattr(torch, dtype)).view(torch.int16).numpy()
    np.testing.assert_array_equal(ours.view(np.uint16)[~nan], theirs.view(np.uint16)[~nan])
    assert np.isnan(widen(ours[nan], dtype)).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_finiteness_as_in_torch(dtype: str) -> None:
    finite = torch.isfinite(tensor(PATTERNS, dtype)).numpy()
    for pattern, expected in zip(PATTERNS[:, None].view(STORED[dtype]), finite, strict=True):
        assert all_finite(pattern, dtype) == expected
