"""The numbers that the report shows, taken from a trace."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from numpy_bloom.model.primitives import log_softmax
from numpy_bloom.study.lenses import attributions, logit_lens
from numpy_bloom.study.stages import IN_BLOCK
from numpy_bloom.study.trace import Trace
from numpy_bloom.weights.dtypes import Floats

NORMED = tuple(
    stage for stage in IN_BLOCK if stage.shape.startswith("T ") and "S" not in stage.shape
)
"""Stages with a row for each token, of which the report shows the rows' lengths."""
NAMES = ",".join([f"blocks.*.{s.name}" for s in NORMED] + ["blocks.*.attn.pattern", "logits"])
"""The stages that a report is made of, as `Bloom.trace` takes them."""

TOP = 10
LENS_TOP = 5
PATTERN_STEPS = 10_000
"""The report shows a pattern's shares with four decimals, and holds as many."""

Array = npt.NDArray[Any]


def next_tokens(logits: Floats) -> tuple[Array, Array]:
    """The likeliest tokens after each position (T, TOP) and their log-probabilities."""
    x = log_softmax(logits.astype(np.float64))
    ids = np.argsort(-x, axis=-1, kind="stable")[:, :TOP]
    return ids.astype(np.int32), np.take_along_axis(x, ids, axis=-1).astype(np.float32)


def arrays(trace: Trace, logits: Floats) -> dict[str, Array]:
    """What the page reads at once, by name.

    Raises:
        NumpyBloomError: the trace lacks a stage, or weights cannot be read.
    """
    ids, log_probabilities = next_tokens(logits)
    lens = logit_lens(trace, LENS_TOP)
    return {
        "next-ids": ids,
        "next-log-p": log_probabilities,
        "lens-ids": lens.token_ids.astype(np.int32),
        "lens-log-p": lens.log_probabilities,
        "lens-entropy": lens.entropy,
        "norms": _norms(trace),
        **_attribution_arrays(trace),
    }


def _norms(trace: Trace) -> Array:
    """(L, stages, T) float32: the Euclidean length of each token's row."""
    blocks, tokens = trace.model.config.num_hidden_layers, len(trace.token_ids)
    norms = np.empty((blocks, len(NORMED), tokens), dtype=np.float32)
    for i in range(blocks):
        for j, stage in enumerate(NORMED):
            rows = trace.stage(f"blocks.{i}.{stage.name}").reshape(tokens, -1)
            norms[i, j] = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=-1))
    return norms


def patterns(trace: Trace) -> Iterator[Array]:
    """Each block's attention (N, T (T + 1) / 2) uint16, row after row up to the diagonal, in
    steps of 1 / PATTERN_STEPS.

    Raises:
        NumpyBloomError: the trace lacks it.
    """
    rows, columns = np.tril_indices(len(trace.token_ids))
    for i in range(trace.model.config.num_hidden_layers):
        pattern = trace.stage(f"blocks.{i}.attn.pattern")
        steps = np.empty((len(pattern), len(rows)), dtype=np.uint16)
        for head, shares in enumerate(pattern):
            steps[head] = np.rint(shares[rows, columns] * np.float64(PATTERN_STEPS))
        yield steps


def _attribution_arrays(trace: Trace) -> dict[str, Array]:
    """What each part adds to the logit of the likeliest token after each position, float32; none
    if the model's logits are no sums of parts."""
    if trace.model.config.apply_residual_connection_post_layernorm:
        return {}
    every = attributions(trace, range(len(trace.token_ids)))
    columns = {
        "embedding": [parts.embedding for parts in every],
        "heads": [parts.heads for parts in every],
        "biases": [parts.attention_biases for parts in every],
        "mlps": [parts.mlps for parts in every],
        "final-bias": [parts.final_bias for parts in every],
        "logit": [parts.logit for parts in every],
    }
    return {f"parts-{name}": np.array(each, dtype=np.float32) for name, each in columns.items()}
