"""What the parity suite, with its short texts, does not reach."""

import numpy as np

from numpy_bloom.model.primitives import softmax


def test_softmax_rounds_subnormal_probabilities_to_zero() -> None:
    """Against float64; the step between neighbours is larger than float32's error in exp."""
    scores = np.linspace(0, -110, 2_000, dtype=np.float32)
    expected = np.exp(scores.astype(np.float64))
    expected /= expected.sum()
    normal = expected >= np.finfo(np.float32).tiny
    found = softmax(scores)
    assert 0 < (found > 0).sum() < len(found)
    np.testing.assert_allclose(found, np.where(normal, expected, 0), rtol=2e-5)
