"""ALiBi: attention with linear biases, in place of position embeddings.

Press, Smith and Lewis 2021, https://arxiv.org/abs/2108.12409: a head with slope m adds
-m · (distance between query and key) to its scores, so that nearer tokens weigh more.
"""

import numpy as np

from numpy_bloom.weights.dtypes import Floats


def alibi_slopes(heads: int) -> Floats:
    """The slope of each head: a geometric sequence for powers of two, interleaved otherwise.

    For n = 2^k heads the slopes are 2^(-8/n), 2^(-16/n), ..., 2^-8. For any other number, those
    of the largest power of two below it, then every other slope (the 1st, 3rd, ...) of the next
    power of two: as the paper's authors released it, and as BLOOM-176B with 112 heads has it.

    Returns:
        (N,) float32.
    """
    below = 1 << (heads.bit_length() - 1)  # largest power of two that is not above `heads`
    slopes = _geometric(below) + _geometric(2 * below)[::2][: heads - below]
    return np.array(slopes, dtype=np.float32)


def _geometric(heads: int) -> list[float]:
    return [2.0 ** (-8.0 * head / heads) for head in range(1, heads + 1)]


def alibi_bias(slopes: Floats, queries: int, keys: int) -> Floats:
    """The bias that each head adds to its scores: minus slope times distance.

    Args:
        slopes: (N,) float32.
        queries: number of query positions; they are the last ones of the sequence.
        keys: number of key positions.

    Returns:
        (N, queries, keys) float32. Keys later than their query, which the mask removes, would get
        a positive bias.
    """
    query_position = np.arange(keys - queries, keys, dtype=np.float32)
    key_position = np.arange(keys, dtype=np.float32)
    distance = query_position[:, None] - key_position[None, :]  # (queries, keys)
    return -slopes[:, None, None] * distance  # (N, queries, keys)


def causal_mask(queries: int, keys: int) -> Floats:
    """0 where a query may see a key (its own position and all before it), -inf elsewhere.

    Returns:
        (queries, keys) float32, for queries at the last positions of the sequence.
    """
    query_position = np.arange(keys - queries, keys)
    hidden = np.arange(keys)[None, :] > query_position[:, None]  # (queries, keys)
    return np.where(hidden, np.float32(-np.inf), np.float32(0))
