"""What texts, scores and commands ask of a model, wherever its blocks are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.model.forward import TokenIds
from numpy_bloom.model.passes import Tap, no_tap
from numpy_bloom.running.memory import Needs
from numpy_bloom.running.room import OnWeights
from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.manifest import see_verify


class SequenceCache(Protocol):
    """What the text of a sequence asks of its cache, wherever the keys and values lie.

    Attributes:
        capacity: tokens that fit.
        length: tokens that are in; set back, it forgets those after it.
    """

    capacity: int
    length: int

    @property
    def token_shape(self) -> tuple[int, ...]:
        """Shape of what is kept of one token: (L, 2, N, D)."""

    def token(self, place: int) -> Floats:
        """Keys and values of one token in every block, (L, 2, N, D), in one piece."""

    def put(self, place: int, keys_values: Floats) -> None:
        """Put back what `token` gave. `length` does not move."""

    def copy_prefix(self, other: Any, tokens: int, known: int = 0) -> None:
        """Begin with the first tokens of another sequence of the same model, the first `known` of
        which are in."""


class Runner(Protocol):
    """`Model` is one. Caches are those that it prepared itself.

    Attributes:
        folder: the converted model.
        config: its sizes.
    """

    folder: Path
    config: BloomConfig

    @property
    def memory(self) -> int:
        """Bytes that weights and runs may take in each process."""

    @property
    def weight_bytes(self) -> int:
        """Of weights that a pass uses."""

    @property
    def bytes_pinned(self) -> int:
        """Of weights that are held in memory."""

    @property
    def bytes_read(self) -> int:
        """Of weights, read from disk by all passes so far."""

    @property
    def resident_bytes(self) -> int:
        """What runs and all weights take of this process's memory; without drafts."""

    def prepare(self, needs: Needs) -> Sequence[Any]:
        """See `Room`. What holds tokens is a `SequenceCache`."""

    def has_room(self, needs: Needs, *, resident: bool = False) -> bool:
        """See `Room`."""

    def has_room_for_pass(
        self, tokens: int, longest: int, *, target_rows: int, resident: bool
    ) -> bool:
        """See `Room`."""

    def run(
        self,
        sequences: Sequence[TokenIds],
        caches: Sequence[Any],
        *,
        last: Sequence[int] | None = None,
        tap: Tap = no_tap,
    ) -> Floats:
        """See `Model`."""

    def score(
        self, sequences: Sequence[TokenIds], caches: Sequence[Any], targets: Sequence[TokenIds]
    ) -> Floats:
        """See `Model`."""

    def forecast(self) -> str:
        """See `Room`."""

    def watch(self, on_weights: OnWeights) -> None:
        """See `Room`."""

    def close(self) -> Any:
        """Give back all memory. It cannot be used afterwards."""


def check_finite(output: Floats, model: Runner) -> None:
    """Check what a pass of a model computed.

    Raises:
        NumpyBloomError: NaN or inf is among it.
    """
    if not np.isfinite(output).all():
        raise NumpyBloomError(
            "the model's output is not finite, its weights may be damaged"
            f"{see_verify(model.folder, deep=True)}"
        )
