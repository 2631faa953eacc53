"""The functions that the model is made of: affine map, layer norm, GELU, softmax, its logarithm."""

import numpy as np

from numpy_bloom.model import parameters
from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.linear import linear


def affine(x: Floats, w: parameters.Affine) -> Floats:
    """x · Wᵀ + b.

    Args:
        x: (T, inputs) float32.

    Returns:
        (T, outputs) float32.
    """
    y = linear(x, w.weight)
    y += w.bias
    return y


def layer_norm(x: Floats, weight: Floats, bias: Floats, epsilon: float) -> Floats:
    """Shift and scale each row to mean 0 and variance 1, then by learned weights.

    (x - mean) / sqrt(variance + epsilon) * weight + bias, with the biased variance
    (Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450).

    Args:
        x: (T, H) float32.
        weight, bias: (H,) float32.
        epsilon: keeps the root away from zero.

    Returns:
        (T, H) float32.
    """
    y: Floats = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(y).mean(axis=-1, keepdims=True)  # (T, 1)
    y /= np.sqrt(variance + np.float32(epsilon))  # in place: new memory costs more than the sums
    y *= weight
    y += bias
    return y


def gelu(x: Floats) -> Floats:
    """Gaussian error linear unit, in BLOOM's tanh form with BLOOM's own constants.

    x/2 * (1 + tanh(0.79788456 x (1 + 0.044715 x²))), where 0.79788456 is √(2/π):
    `bloom_gelu_forward` in transformers' modeling_bloom.py, after Hendrycks and Gimpel 2016,
    https://arxiv.org/abs/1606.08415.

    Args:
        x: float32 of any shape.

    Returns:
        float32 of the same shape.
    """
    inner: Floats = np.float32(0.79788456) * x * (1 + np.float32(0.044715) * x * x)
    y: Floats = x * np.float32(0.5) * (1 + np.tanh(inner))
    return y


def softmax(scores: Floats) -> Floats:
    """exp(scores) along the last axis, scaled to the sum 1.

    Args:
        scores: float32 of any shape.

    Returns:
        float32 of the same shape.

    The maximum is subtracted first: it changes nothing but keeps exp from overflowing. A score of
    -inf gets the probability 0. So does one whose probability would be subnormal, below 1.2e-38:
    ALiBi makes many of them, and some processors are slow to multiply by such numbers.
    """
    exponentials: Floats = scores - scores.max(axis=-1, keepdims=True)
    np.exp(exponentials, out=exponentials)
    exponentials /= exponentials.sum(axis=-1, keepdims=True)
    exponentials *= exponentials >= np.finfo(np.float32).tiny
    return exponentials


def log_softmax(scores: Floats) -> Floats:
    """Natural logarithms of the softmax, of the same shape, also of float64."""
    below_top: Floats = scores - scores.max(axis=-1, keepdims=True)
    below_top -= np.log(np.exp(below_top).sum(axis=-1, keepdims=True))
    return below_top
