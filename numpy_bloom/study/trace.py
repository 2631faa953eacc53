"""The trace of a pass: every stage's array by its name, checked, compared, recomputed."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.generation.continuation import Token
from numpy_bloom.generation.generation import GenerationInBatch
from numpy_bloom.model.forward import TokenIds
from numpy_bloom.running.memory import Needs
from numpy_bloom.running.model import Model
from numpy_bloom.study.capture import Arrays, Capture, Edit, check_edits, trace_bytes
from numpy_bloom.study.compare import Difference, Divergence, compare, first_divergence
from numpy_bloom.study.formulas import compute_exactly, recompute
from numpy_bloom.study.stages import matching
from numpy_bloom.weights.dtypes import Floats


class Trace(Mapping[str, Floats]):
    """The stages of one pass over one sequence, by name, in the order of computation.

    Attributes:
        model: that was run.
        token_ids: (T,) int64, of the pass.
        logit_rows: how many of these, the last ones, met the vocabulary.
        previous: the trace of the pass before it in the same text, if there was one.
        block_seconds: what each block took, tracing included.
    """

    def __init__(
        self,
        model: Model,
        token_ids: TokenIds,
        arrays: Arrays,
        block_seconds: Sequence[float],
        *,
        logit_rows: int,
        previous: "Trace | None" = None,
    ) -> None:
        self.model = model
        self.token_ids = token_ids
        self.block_seconds = block_seconds
        self.logit_rows = logit_rows
        self.previous = previous
        self._arrays = arrays

    def __getitem__(self, name: str) -> Floats:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def stage(self, name: str) -> Floats:
        """The same as `trace[name]`, for whoever cannot do without it.

        Raises:
            NumpyBloomError: it was not traced.
        """
        if name not in self:
            raise NumpyBloomError(f"the trace lacks {name}; trace it as well")
        return self[name]

    @property
    def past(self) -> int:
        """Tokens of the text before this pass."""
        return sum(len(trace.token_ids) for trace in self._passes()[:-1])

    def so_far(self, name: str) -> Floats:
        """A stage (T, …) of this pass and all before it, (S, …).

        Raises:
            KeyError: a trace lacks it.
        """
        parts = [trace[name] for trace in self._passes()]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _passes(self) -> list["Trace"]:
        """This pass and all before it in the same text, in their order."""
        passes = [self]
        while (previous := passes[-1].previous) is not None:
            passes.append(previous)
        return passes[::-1]

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


def run_traced(
    model: Model,
    ids: TokenIds,
    *,
    names: str | None,
    folder: Path | None,
    edits: Mapping[str, Edit] | None,
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
    caches = model.prepare(Needs.of_one_pass([tokens], logit_rows=tokens, beside=beside))
    capture = Capture(arrays, wanted, edits or {}, tokens=tokens, seen=tokens)
    try:
        logits = model.run([ids], caches, last=[tokens], tap=capture)
    except BaseException:
        arrays.discard()
        raise
    return logits, Trace(model, ids, arrays, capture.block_seconds, logit_rows=tokens)


def trace_steps(
    model: Model, generation: GenerationInBatch, names: str | None, most_new: int
) -> Iterator[tuple[Token, Trace]]:
    """The new tokens of a generation, each with the trace of the pass that gave it.

    Args:
        model: that generates.
        generation: of one text alone, not begun, without guesses: a token is a pass.
        names: of the stages to keep.
        most_new: tokens that it may make.

    Raises:
        NumpyBloomError: a name is no stage, or the memory does not suffice.
    """
    wanted = matching(names, model.config.num_hidden_layers)
    ids = np.array(generation.prompt_token_ids)
    seen = len(ids)
    kept = trace_bytes(wanted, model.config, seen, seen, in_memory=True) + most_new * trace_bytes(
        wanted, model.config, 1, seen + most_new, in_memory=True
    )
    # Held until the end: what the traces take is not there for weights.
    reserved = model.prepare(Needs.of_one_pass([seen], logit_rows=1, beside=kept))
    previous = None
    while True:
        arrays = Arrays()
        capture = Capture(arrays, wanted, {}, tokens=len(ids), seen=seen)
        generation.watch(capture)
        token = next(generation, None)
        if token is None:
            break
        seconds = capture.block_seconds
        previous = Trace(model, ids, arrays, seconds, logit_rows=1, previous=previous)
        yield token, previous
        ids = np.array([token.id])
        seen += 1
    del reserved
