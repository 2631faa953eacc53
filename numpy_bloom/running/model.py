"""A model that is ready to run: its config and its weights, one pass at a time."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from numpy_bloom.model.cache import Cache
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.model.forward import (
    TokenIds,
    embed,
    log_probabilities,
    run_blocks,
    unembed,
)
from numpy_bloom.model.passes import Pass, Tap, no_tap
from numpy_bloom.running.room import Room
from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.folder import Folder
from numpy_bloom.weights.store import WeightStore
from numpy_bloom.weights.team import one_blas_thread


class Leg(NamedTuple):
    """What of a pass a model does that holds a range of the blocks; all of it, if it holds all.

    Attributes:
        lengths: how many of the T tokens belong to each sequence.
        embeds: whether it begins with token ids.
        rows: those of the T tokens that are wanted at the end; None: all.
        unembeds: whether logits of them are wanted.
        targets: the tokens of which log-probabilities are wanted instead, one for each row.
    """

    lengths: Sequence[int]
    embeds: bool = False
    rows: npt.NDArray[np.int64] | None = None
    unembeds: bool = False
    targets: npt.NDArray[np.int64] | None = None


class Model(Room):
    """Config and weights, the memory that they and all runs share, and passes.

    It may hold a range of the blocks only, without what lies before or behind them. Its caches then
    keep keys and values of these blocks, and its passes are legs of longer ones.

    Passes of several threads wait for each other. A model that nobody holds any more closes
    itself.
    """

    def __init__(
        self, config: BloomConfig, store: WeightStore, memory: int, blocks: range | None = None
    ) -> None:
        super().__init__(config, store, memory, blocks)
        self.close = weakref.finalize(self, store.close)

    @classmethod
    def open(
        cls,
        folder: Path,
        config: BloomConfig,
        *,
        memory: int,
        threads: int,
        blocks: range | None = None,
        embeds: bool = True,
        unembeds: bool = True,
    ) -> "Model":
        """Open a converted model, or a range of its blocks.

        Args:
            folder: the converted model; files of other blocks need not be there.
            config: its sizes.
            memory: bytes that weights and runs together may take.
            threads: how many compute.
            blocks: consecutive ones. Default: all.
            embeds, unembeds: whether what lies before and behind the blocks is wanted.

        Raises:
            NumpyBloomError: what is wanted is not there, not complete or damaged.
        """
        sizes = config.num_hidden_layers, config.hidden_size, config.vocab_size
        files = Folder.open(folder, *sizes, only=blocks, embeds=embeds, unembeds=unembeds)
        return cls(config, WeightStore(files, threads), memory, blocks)

    def run(
        self,
        sequences: Sequence[TokenIds],
        caches: Sequence[Cache],
        *,
        last: Sequence[int] | None = None,
        tap: Tap = no_tap,
    ) -> Floats:
        """One pass: new tokens of some sequences in, logits out, caches grown.

        Args:
            sequences: for each sequence the ids of its new tokens, 1-D int64, not empty.
            caches: for each sequence its cache, which holds the tokens before them.
            last: for each sequence how many of its last new tokens meet the vocabulary. Default:
                one.
            tap: sees every stage.

        Returns:
            Logits float32, a row for each token that meets the vocabulary: (B, V) by default.

        Raises:
            NumpyBloomError: weights cannot be read, or a cache is full.
        """
        lengths = [len(ids) for ids in sequences]
        last = [1] * len(sequences) if last is None else last
        leg = Leg(lengths, embeds=True, rows=last_rows(lengths, last), unembeds=True)
        return self.run_leg(np.concatenate(sequences), leg, caches, tap)

    def score(
        self,
        sequences: Sequence[TokenIds],
        caches: Sequence[Cache],
        targets: Sequence[TokenIds],
    ) -> Floats:
        """One pass: new tokens of some sequences in, log-probabilities of what follows them out.

        Args:
            sequences, caches: as in `run`.
            targets: for each sequence the ids of the tokens after its last new ones, 1-D int64, at
                most as many as there are new ones: the last target follows the last new token.

        Returns:
            Natural logarithms of the targets' probabilities, float32, in one array.

        Raises:
            NumpyBloomError: weights cannot be read, or a cache is full.
        """
        lengths = [len(ids) for ids in sequences]
        rows = last_rows(lengths, [len(ids) for ids in targets])
        leg = Leg(lengths, embeds=True, rows=rows, targets=np.concatenate(targets))
        return self.run_leg(np.concatenate(sequences), leg, caches)

    def run_leg(
        self, x: npt.NDArray[Any], leg: Leg, caches: Sequence[Cache], tap: Tap = no_tap
    ) -> Floats:
        """What of a pass this model's blocks, and what lies around them, have to do.

        Args:
            x: (T,) token ids if the leg embeds, else (T, H) float32.
            leg: what there is to do.
            caches: for each sequence its cache of this model.
            tap: sees every stage.

        Returns:
            (T, H) float32, or the rows of it that the leg chooses; their logits, or
            log-probabilities of their targets, if it asks for these.

        Raises:
            NumpyBloomError: weights cannot be read, or a cache is full.
        """
        w = self.parameters
        with self.computing():
            p = Pass.begin(self.config, leg.lengths, caches, self.store.team, tap)
            if leg.embeds:
                x = embed(x, w, p)
            x = run_blocks(x, self.blocks, w, p)
            if leg.rows is not None:
                x = x[leg.rows]
            if leg.targets is not None:
                x = log_probabilities(x, leg.targets, w, p)
            elif leg.unembeds:
                x = unembed(x, w, p)
            p.advance()
        return x

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within it the weights can be multiplied by, by one caller at a time."""
        # What damaged weights bring about is seen in the logits, not in warnings on the way.
        with (
            self.alone(),
            one_blas_thread(),
            np.errstate(invalid="ignore", over="ignore"),
        ):
            try:
                yield
            finally:
                self.store.in_use.release()  # a pass that was cut short has left chunks in use


def last_rows(lengths: Sequence[int], last: Sequence[int]) -> npt.NDArray[np.int64]:
    """Places, among the T tokens of a pass, of the last tokens of each sequence."""
    ends = np.cumsum(lengths)
    rows = zip(ends, lengths, last, strict=True)
    assert all(0 < count <= length for _, length, count in rows)
    return np.concatenate(
        [np.arange(end - count, end) for end, count in zip(ends, last, strict=True)]
    )
