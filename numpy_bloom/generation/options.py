"""What can be chosen of how a text goes on."""

from collections.abc import Sequence
from dataclasses import dataclass

from numpy_bloom.errors import check_whole
from numpy_bloom.generation.sampling import SamplingOptions

MOST_SEQUENCES = 10_000
"""Samples of a prompt, or beams."""


@dataclass(frozen=True)
class GenerationOptions(SamplingOptions):
    """How a text is continued, and when it ends.

    Attributes:
        max_new_tokens: end after so many.
        stop: end before any of these texts.
        draft_tokens: most guesses at a time, if something guesses.

    The others, of `SamplingOptions`, say how tokens are chosen: greedily by default.

    Raises:
        OptionError: a value is out of range; the message names the interval.
    """

    max_new_tokens: int = 128
    stop: Sequence[str] = ()
    draft_tokens: int = 8

    def __post_init__(self) -> None:
        check_whole("max_new_tokens", self.max_new_tokens, 1)
        check_whole("draft_tokens", self.draft_tokens, 1)
        super().__post_init__()
