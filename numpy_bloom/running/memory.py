"""What runs need in memory besides weights: an upper estimate, made before they start."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from numpy_bloom.model.config import BloomConfig
from numpy_bloom.model.passes import SLICE_TOKENS

FLOATS_PER_HIDDEN = 13
"""Arrays of (T, H) that are alive at once, at the second MLP matrix: the block's input, the
residual stream, its norm, the 4H-wide input and its two halves for the kernel, the output, and
one for temporaries."""

BYTES_PER_SCORE = 13
"""Of (N, Q, S), that a slice has at once: scaled, scores, probabilities, and which of these are
large enough."""

LIVE_WIDE = 4
"""Arrays of (T, 4H) that a slice has at once, in GELU."""

LIVE_LOGITS = 14
"""Arrays of (V,) float32 while a token is chosen: logits, penalized, scaled and filtered ones,
their order, sums and probabilities, of which some are twice as wide."""


class Resident(Protocol):
    """Another model, of whose memory a run makes use."""

    @property
    def resident_bytes(self) -> int:
        """What it takes of it."""


@dataclass(frozen=True)
class Needs:
    """What a run has to have room for.

    Attributes:
        cache_tokens: for each sequence the tokens that its cache is to hold; 0 if it begins and
            ends with one pass, of which nothing is kept.
        pass_tokens: T of the largest pass, those of other sequences included.
        logit_rows: (V,) rows that this pass holds, of logits and of guesses.
        target_rows: tokens of it whose probabilities are wanted, if it is for `score`.
        longest: tokens of the longest sequence of a pass that is not among `cache_tokens`, or of
            which nothing is kept.
        beside: bytes that an onlooker keeps.
        draft: another model, of whose memory the run makes use.
    """

    cache_tokens: Sequence[int]
    pass_tokens: int
    logit_rows: int = 0
    target_rows: int = 0
    longest: int = 0
    beside: int = 0
    draft: Resident | None = None

    @classmethod
    def of_one_pass(
        cls, lengths: Sequence[int], *, logit_rows: int = 0, target_rows: int = 0, beside: int = 0
    ) -> "Needs":
        """For a pass, or many such passes, with which sequences of these lengths begin and end."""
        nothing_kept = [0] * len(lengths)
        return cls(nothing_kept, sum(lengths), logit_rows, target_rows, max(lengths), beside)


def pass_bytes(config: BloomConfig, tokens: int, longest: int, threads: int, scratch: int) -> int:
    """Bytes of activations and scratch arrays, up to the last block.

    Args:
        tokens: T.
        longest: S of the longest sequence.
        threads: how many compute.
        scratch: bytes that each of them needs to multiply.
    """
    hidden = 4 * FLOATS_PER_HIDDEN * config.hidden_size * tokens
    scores = BYTES_PER_SCORE * config.num_attention_heads * longest
    wide = 4 * LIVE_WIDE * 4 * config.hidden_size
    bias_and_mask = 4 * (config.num_attention_heads + 1) * longest
    slices = min(SLICE_TOKENS, tokens) * (threads * max(scores, wide) + bias_and_mask)
    return hidden + slices + threads * scratch


def logit_bytes(config: BloomConfig, rows: int) -> int:
    """Bytes of the logits of some rows, and of what comes while a token is chosen."""
    return 4 * config.vocab_size * (rows + LIVE_LOGITS)


def score_bytes(config: BloomConfig, rows: int, threads: int, tile_rows: int) -> int:
    """Bytes of `log_probabilities`: logits of a tile in each thread, a float64 for every tile.

    Args:
        rows: that have a target.
        threads: how many compute.
        tile_rows: rows of a tile of the head.
    """
    return rows * (4 * threads * tile_rows + 8 * math.ceil(config.vocab_size / tile_rows))
