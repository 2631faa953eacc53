"""An onlooker that keeps stages of a pass, in memory or in a folder, and changes some."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from numpy_bloom.errors import NumpyBloomError, failing_as
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.study.stages import BY_KEYS, LATER_KEYS, local_name, matching, stage_shape
from numpy_bloom.weights.dtypes import Floats

Edit = Callable[[Floats], Floats]
"""Gets a copy of a stage's array and returns what the model is to go on with, of the same shape.
Stages of attention by key, and those of the MLP's inside, come some 64 tokens at a time."""


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
            with failing_as(f"cannot write {folder}"):
                folder.mkdir(parents=True, exist_ok=True)
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
        array = np.ascontiguousarray(array)
        header = np.lib.format.header_data_from_array_1_0(array)
        self._arrays[name] = None
        # np.save would not say that the disk is full.
        with failing_as(f"cannot write {path}"), path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.write(array.data)

    def discard(self) -> None:
        """Remove the files of a pass that came to nothing."""
        if self._folder is not None:
            for name in self._arrays:
                with suppress(OSError):
                    self._path(name).unlink()

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


class Capture:
    """An onlooker that keeps stages, and changes some on their way.

    Args:
        arrays: keeps them.
        wanted: names of those to keep.
        edits: by name, what is done to a stage.
        tokens, seen: T and S of the pass.

    Attributes:
        block_seconds: what each block took, this onlooker included.
    """

    def __init__(
        self,
        arrays: Arrays,
        wanted: Sequence[str],
        edits: Mapping[str, Edit],
        *,
        tokens: int,
        seen: int,
    ) -> None:
        self.block_seconds: list[float] = []
        self._arrays = arrays
        self._wanted = frozenset(wanted)
        self._edits = edits
        self._tokens = tokens
        self._seen = seen
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
            self.block_seconds.append(time.perf_counter() - self._block_begin)

    def _keep(self, name: str, array: Floats, rows: slice) -> None:
        """Copy some tokens' part of a stage; with the last of them it is complete."""
        tokens = self._tokens
        if rows == slice(0, tokens):
            self._arrays.keep(name, array.copy())
            return
        if name not in self._unfinished:
            by_keys = local_name(name) in BY_KEYS
            last = self._seen if by_keys else array.shape[-1]
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


def check_edits(edits: Mapping[str, Edit], config: BloomConfig) -> None:
    """See that every edit has a stage.

    Raises:
        NumpyBloomError: one has not.
    """
    for name in edits:
        if matching(name, config.num_hidden_layers) != [name]:
            raise NumpyBloomError(f"an edit is of one stage, {name!r} is a pattern")
