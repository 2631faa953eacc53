"""What the parts of the model share while some tokens go through it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from numpy_bloom.model.alibi import alibi_bias, alibi_slopes, causal_mask
from numpy_bloom.model.cache import Cache
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.team import Team

SLICE_TOKENS = 64
"""A long prompt is attended and activated so many tokens at a time: the intermediates stay small,
and every core gets its share."""

Tap = Callable[[str, Floats, slice], Floats]
"""An onlooker: gets each stage's name, its array, and which of the pass's T tokens the array is
of (`ln_final.normalized` and `logits` come with all T, but hold only those that meet the
vocabulary); the model goes on with what it returns, and may overwrite it: copy what you keep. Names
follow TransformerLens, without its "hook_": `blocks.3.attn.pattern`."""

Item = TypeVar("Item")


def no_tap(_name: str, array: Floats, _rows: slice) -> Floats:
    """Nobody looks: the identity."""
    return array


class Visible(NamedTuple):
    """Some tokens of one sequence, and what they may see of it.

    Attributes:
        rows: their place among the T tokens of the pass.
        keys, values: (N, S, D) float32 of all positions up to the last of them.
        bias: (N, Q, S) float32, ALiBi's.
        mask: (Q, S) float32, 0 where they may look and -inf elsewhere.
    """

    rows: slice
    keys: Floats
    values: Floats
    bias: Floats
    mask: Floats


@dataclass(frozen=True)
class Pass:
    """One pass: the T tokens of some sequences, one sequence after the other.

    Attributes:
        config: the model's sizes.
        lengths: how many of the T tokens belong to each sequence.
        caches: of each sequence.
        bias: (N, Q, S) float32, ALiBi's for the last positions of the longest sequence, as many as
            a slice has at most.
        mask: (Q, S) float32, for the same positions.
        team: the threads that compute.
        onlooker: sees every stage.
        block: the block that the tokens are in.
    """

    config: BloomConfig
    lengths: Sequence[int]
    caches: Sequence[Cache]
    bias: Floats
    mask: Floats
    team: Team
    onlooker: Tap = no_tap
    block: int | None = None

    @classmethod
    def begin(
        cls,
        config: BloomConfig,
        lengths: Sequence[int],
        caches: Sequence[Cache],
        team: Team,
        onlooker: Tap = no_tap,
    ) -> "Pass":
        """A pass, with what is the same in every block: bias and mask.

        Both depend only on how far a query and a key are from the end of what the query's slice
        sees, so those of every slice are the last rows and columns of the largest ones.
        """
        queries = min(SLICE_TOKENS, max(lengths))
        seen = max(cache.length + length for cache, length in zip(caches, lengths, strict=True))
        bias = alibi_bias(alibi_slopes(config.num_attention_heads), queries, seen)  # (N, Q, S)
        mask = causal_mask(queries, seen)  # (Q, S)
        for shared in (bias, mask):  # by all slices: no onlooker may change them in place
            shared.flags.writeable = False
        return cls(config, lengths, caches, bias, mask, team, onlooker)

    def in_block(self, block: int) -> "Pass":
        """The same pass within a block: names and caches are that block's."""
        return replace(self, block=block)

    def tap(self, name: str, array: Floats, rows: slice | None = None) -> Floats:
        """Show a stage to the onlooker; `rows` (default: all T) are the tokens it is of."""
        if self.onlooker is no_tap:
            return array
        prefix = "" if self.block is None else f"blocks.{self.block}."
        return self.onlooker(prefix + name, array, rows or slice(0, sum(self.lengths)))

    def append_and_slice(self, k: Floats, v: Floats) -> list[Visible]:
        """Store the keys and values (T, N, D) of this pass's tokens in their sequences' caches.

        Returns:
            The tokens in slices, none of which is of two sequences, with what each may see.
        """
        assert self.block is not None
        parts = []
        first = 0
        for length, cache in zip(self.lengths, self.caches, strict=True):
            rows = slice(first, first + length)
            keys, values = cache.append(self.block, k[rows], v[rows])  # (N, S, D)
            past = keys.shape[1] - length
            for part in token_slices(length):
                queries, seen = part.stop - part.start, past + part.stop
                rows = slice(first + part.start, first + part.stop)
                bias, mask = self.bias[:, -queries:, -seen:], self.mask[-queries:, -seen:]
                parts.append(Visible(rows, keys[:, :seen], values[:, :seen], bias, mask))
            first += length
        return parts

    def advance(self) -> None:
        """All blocks have appended: from now on the tokens of this pass are of the past."""
        for length, cache in zip(self.lengths, self.caches, strict=True):
            cache.advance(length)

    def for_each(self, parts: Sequence[Item], work: Callable[[Item], object]) -> None:
        """Work on every part: in order if somebody looks on, else on all cores at once."""
        if self.onlooker is no_tap and len(parts) > 1:
            self.team.run(work, iter(parts))
        else:
            for part in parts:
                work(part)


def token_slices(tokens: int) -> list[slice]:
    """Consecutive slices of at most `SLICE_TOKENS` tokens."""
    starts = range(0, tokens, SLICE_TOKENS)
    return [slice(start, min(start + SLICE_TOKENS, tokens)) for start in starts]
