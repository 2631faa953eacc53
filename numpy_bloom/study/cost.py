"""What a pass costs, block by block."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from numpy_bloom.model.config import BloomConfig
from numpy_bloom.study.trace import Trace
from numpy_bloom.weights.matrix import Matrix


class Cost(NamedTuple):
    """Of a block, or of the head.

    Attributes:
        name: `blocks.3`, `head`.
        flops: multiplications and additions in matrix products.
        weight_bytes: of its matrices, as stored.
        seconds: that the traced pass took, its tracing included; None for the head.
    """

    name: str
    flops: int
    weight_bytes: int
    seconds: float | None


def costs(trace: Trace) -> Iterator[Cost]:
    """What each block of a traced pass, and the head, cost."""
    config, w = trace.model.config, trace.model.parameters
    tokens = len(trace.token_ids)
    for i, block in enumerate(w.blocks):
        attention, mlp = block.self_attention, block.mlp
        parts = (attention.query_key_value, attention.dense, mlp.dense_h_to_4h, mlp.dense_4h_to_h)
        flops, nbytes = _matrices([part.weight for part in parts], tokens)
        flops += _attention_flops(config, tokens, trace.past)
        yield Cost(f"blocks.{i}", flops, nbytes, trace.block_seconds[i])
    flops, nbytes = _matrices([w.lm_head], trace.logit_rows)
    yield Cost("head", flops, nbytes, None)


def _matrices(matrices: list[Matrix], tokens: int) -> tuple[int, int]:
    """Operations and bytes of products with some matrices."""
    flops = sum(2 * tokens * math.prod(matrix.shape) for matrix in matrices)
    return flops, sum(matrix.format.nbytes(*matrix.shape) for matrix in matrices)


def _attention_flops(config: BloomConfig, tokens: int, past: int) -> int:
    """Of q · kᵀ and pattern · v over the keys that each query may see."""
    visible = sum(past + i + 1 for i in range(tokens))
    return 2 * 2 * visible * config.hidden_size
