"""The trace of a pass: every stage's array by its name, in memory or in a folder."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.model.forward import TokenIds
from numpy_bloom.model.model import Model
from numpy_bloom.study.compare import Difference, Divergence, compare, first_divergence
from numpy_bloom.study.formulas import compute_exactly, recompute
from numpy_bloom.study.stages import BY_KEYS, LATER_KEYS, local_name, matching, stage_shape
from numpy_bloom.weights.dtypes import Floats

Edit = Callable[[Floats], Floats]
"""Gets a copy of a stage's array and returns what the model is to go on with, of the same shape.
Stages of attention by key, and those of the MLP's inside, come some 32 tokens at a time."""


class Arrays(Mapping[str, Floats]):
    """Arrays by name, in order; in a folder each is a file `NAME.npy`, mapped when it is asked for.

    Args:
        folder: where they are kept; None for memory.

    Raises:
        NumpyBloomError: the folder cannot be made, or holds arrays already.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._arrays: dict[str, Floats | None] = {}
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise NumpyBloomError(f"cannot write {folder}: {error.strerror}") from error
            if any(folder.glob("*.npy")):
                raise NumpyBloomError(f"{folder} holds arrays already; choose another folder")

    def keep(self, name: str, array: Floats) -> None:
        """Add an array, which nobody changes any more.

        Raises:
            NumpyBloomError: its file cannot be written.
        """
        if self._folder is None:
            array.flags.writeable = False
            self._arrays[name] = array
            return
        path = self._path(name)
        try:
            np.save(path, array)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise NumpyBloomError(f"cannot write {path}: {error.strerror or error}") from error
        self._arrays[name] = None

    def __getitem__(self, name: str) -> Floats:
        array = self._arrays[name]
        if array is None:
            array = np.load(self._path(name), mmap_mode="r")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}.npy"


class Trace(Mapping[str, Floats]):
    """The stages of one pass over one sequence, by name, in the order of computation.

    Attributes:
        model: that was run.
        token_ids: (T,) int64, of the pass.
        previous: the trace of the pass before it in the same text, if there was one.
        block_seconds: what each block took, its onlooker included.
    """

    def __init__(
        self, model: Model, token_ids: TokenIds, arrays: Arrays, previous: "Trace | None" = None
    ) -> None:
        self.model = model
        self.token_ids = token_ids
        self.previous = previous
        self.block_seconds: list[float] = []
        self._arrays = arrays

    def __getitem__(self, name: str) -> Floats:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def past(self) -> int:
        """Tokens of the text before this pass."""
        return 0 if self.previous is None else self.previous.past + len(self.previous.token_ids)

    def so_far(self, name: str) -> Floats:
        """A stage (T, …) of this pass and all before it, (S, …).

        Raises:
            KeyError: a trace lacks it.
        """
        own = self[name]
        return own if self.previous is None else np.concatenate([self.previous.so_far(name), own])

    def check(self) -> Divergence | None:
        """Recompute each stage from the stages before it, by its own formula, and compare bits.

        A stage of which an input is not in the trace is left out.

        Returns:
            The first stage that is not what its formula gives; None if there is none.

        Raises:
            NumpyBloomError: no stage can be recomputed, or weights cannot be read.
        """
        checked = 0
        for name, again in recompute(self.model, self.token_ids, self, self.so_far):
            checked += 1
            if not np.array_equal(again, self[name], equal_nan=True):
                return Divergence(name, "is not what its formula makes of the stages before it")
        if not checked:
            raise NumpyBloomError(
                "the trace holds no stage together with what it is computed from; trace more names"
            )
        return None

    def diff(self, other: Mapping[str, Floats], *, exact: bool = False) -> list[Difference]:
        """Compare with another implementation's or another run's arrays, stage by stage.

        Args:
            other: arrays by the same names and of the same shapes, such as
                `tests/reference/transformers_stages.py` records of transformers.
            exact: whether the pass is also computed in float64, which tells rounding from error: of
                two that only round differently, both are about as far from it.

        Returns:
            A row for each stage that both have, in order of computation.

        Raises:
            NumpyBloomError: there is no common stage, or `exact` is asked of a later pass.
        """
        if exact and self.past:
            raise NumpyBloomError("only a text's first pass is computed in float64")
        return compare(self, other, compute_exactly(self.model, self.token_ids) if exact else None)

    def first_divergence(self, other: Mapping[str, Floats], tolerance: float) -> Divergence | None:
        """The first stage that deviates from another implementation's by more than a tolerance."""
        return first_divergence(self, other, tolerance)


class Capture:
    """An onlooker that keeps stages, and changes some on their way.

    Args:
        trace: keeps them.
        wanted: names of those to keep.
        edits: by name, what is done to a stage.
    """

    def __init__(
        self, trace: Trace, arrays: Arrays, wanted: Sequence[str], edits: Mapping[str, Edit]
    ) -> None:
        self._trace = trace
        self._arrays = arrays
        self._wanted = frozenset(wanted)
        self._edits = edits
        self._unfinished: dict[str, Floats] = {}
        self._block_begin = 0.0

    def __call__(self, name: str, array: Floats, rows: slice) -> Floats:
        if name in self._edits:
            array = edited(name, self._edits[name], array)
        self._clock(name)
        if name in self._wanted:
            self._keep(name, array, rows)
        return array

    def _clock(self, name: str) -> None:
        stage = local_name(name)
        if stage == "resid_pre":
            self._block_begin = time.perf_counter()
        elif stage == "resid_post":
            self._trace.block_seconds.append(time.perf_counter() - self._block_begin)

    def _keep(self, name: str, array: Floats, rows: slice) -> None:
        """Copy some tokens' part of a stage; with the last of them it is complete."""
        tokens = len(self._trace.token_ids)
        if rows == slice(0, tokens):
            self._arrays.keep(name, array.copy())
            return
        if name not in self._unfinished:
            by_keys = local_name(name) in BY_KEYS
            last = self._trace.past + tokens if by_keys else array.shape[-1]
            shape = (*array.shape[:-2], tokens, last)
            fill = LATER_KEYS.get(local_name(name), 0)
            self._unfinished[name] = np.full(shape, fill, dtype=array.dtype)
        whole = self._unfinished[name]
        whole[..., rows, : array.shape[-1]] = array
        if rows.stop == tokens:
            self._arrays.keep(name, self._unfinished.pop(name))


def edited(name: str, edit: Edit, array: Floats) -> Floats:
    """What an edit makes of a stage.

    Raises:
        NumpyBloomError: it is no float32 array of the same shape.
    """
    result = edit(array.copy())
    if not isinstance(result, np.ndarray) or (result.shape, result.dtype) != (
        array.shape,
        array.dtype,
    ):
        found = (
            f"{result.dtype} {result.shape}"
            if isinstance(result, np.ndarray)
            else type(result).__name__
        )
        raise NumpyBloomError(
            f"the edit of {name} returned {found}; expected {array.dtype} {array.shape}"
        )
    return result


def trace_bytes(
    names: Sequence[str], config: BloomConfig, tokens: int, seen: int, *, in_memory: bool
) -> int:
    """Memory that keeping these stages takes: all of them, or those of one block."""
    sizes: dict[str, int] = {}
    for name in names:
        part = name.removesuffix(local_name(name))  # `blocks.3.`
        nbytes = 4 * math.prod(stage_shape(name, config, tokens, seen))
        sizes[part] = sizes.get(part, 0) + nbytes
    return sum(sizes.values()) if in_memory else max(sizes.values())


def run_traced(
    model: Model,
    ids: TokenIds,
    *,
    names: str | None = None,
    folder: Path | None = None,
    edits: Mapping[str, Edit] | None = None,
) -> tuple[Floats, Trace]:
    """One pass over a text from its beginning: its logits (T, V) and its trace.

    Raises:
        NumpyBloomError: a name or an edit is wrong, the folder cannot be written, or the memory
            does not suffice.
    """
    wanted = matching(names, model.config.num_hidden_layers)
    check_edits(edits or {}, model.config)
    arrays = Arrays(folder)
    tokens = len(ids)
    beside = trace_bytes(wanted, model.config, tokens, tokens, in_memory=folder is None)
    trace = Trace(model, ids, arrays)
    caches = model.prepare_one_pass(lengths=[tokens], logit_rows=tokens, beside=beside)
    capture = Capture(trace, arrays, wanted, edits or {})
    return model.run([ids], caches, last=[tokens], tap=capture), trace


def check_edits(edits: Mapping[str, Edit], config: BloomConfig) -> None:
    """See that every edit has a stage.

    Raises:
        NumpyBloomError: one has not.
    """
    for name in edits:
        if matching(name, config.num_hidden_layers) != [name]:
            raise NumpyBloomError(f"an edit is of one stage, {name!r} is a pattern")
