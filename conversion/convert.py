"""The conversion itself: check every tensor, then copy it, one stretch of rows at a time."""

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from conversion.checkpoint import open_checkpoint, strip_prefix
from conversion.hub import local_folder
from conversion.source_tensor import SourceTensor
from conversion.writer import FolderWriter
from numpy_bloom.errors import NumpyBloomError, OptionError
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.weights.dtypes import STORED, Stored, all_finite, narrow, widen
from numpy_bloom.weights.folder import (
    ArrayFile,
    check_shapes,
    head_file,
    model_files,
    read_json,
)

DTYPES = ("keep", *STORED)
ROWS_BYTES = 8 << 20
"""How much of a tensor is read at once. Widened, rounded and compared, it takes some five times
as much memory."""

COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
"""Files that are taken over as they are. Only the first is indispensable."""


def convert(
    source: str | Path, target: str | Path, dtype: str = "keep", *, overwrite: bool = False
) -> None:
    """Convert a Hugging Face checkpoint of a BLOOM into a folder that numpy_bloom can load.

    Every key and shape is checked before anything is written; every number is checked to be
    finite. Norms and biases keep their type. At most some 50 MB of a tensor are in memory, or all
    of it if it is stored transposed.

    Args:
        source: a local folder, or a name on the Hugging Face hub such as `bigscience/bloom-560m`.
        target: the folder to write. It appears only when the conversion is complete.
        dtype: type of the big matrices: `keep` stores each as it was; else `float32`, `bfloat16`
            or `float16` (refused for bfloat16 matrices, whose range float16 does not have).
        overwrite: whether a converted model at `target` may be replaced.

    Raises:
        NumpyBloomError: the checkpoint is incomplete, unreadable, of another model, or not
            finite; the target exists or cannot be written; an option is unknown.
    """
    if dtype not in DTYPES:
        raise OptionError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    target = Path(target)
    writer = FolderWriter(target, overwrite=overwrite)
    folder = local_folder(str(source))
    if folder.resolve().is_relative_to(target.resolve()):
        raise NumpyBloomError(
            f"the source {folder} lies within the target {target}; choose another target"
        )
    values = read_json(folder / "config.json")
    config = BloomConfig.from_dict(values)
    tensors = strip_prefix(open_checkpoint(folder))
    if values.get("tie_word_embeddings") is False and "lm_head.weight" not in tensors:
        raise NumpyBloomError(
            f"{folder}: config.json says that the head is not the word embeddings "
            "(tie_word_embeddings is false), but 'lm_head.weight' is missing"
        )
    files = _files(tensors, config, folder)
    stored = {name: _stored_dtype(tensor, dtype) for name, tensor in tensors.items()}
    total = sum(file.stat().st_size for file in {tensor.path for tensor in tensors.values()})
    bar = tqdm(total=total, unit="B", unit_scale=True, disable=None, desc="converting")
    with writer, bar as progress:
        for file in files:
            keys = {name: file.prefix + name for name in file.shapes}
            arrays = {name: (stored[key], tensors[key].shape) for name, key in keys.items()}
            pieces = (_converted(tensors[key], stored[key], progress) for key in keys.values())
            writer.write_arrays(file.name, arrays, chain.from_iterable(pieces))
        for name in COPIED:
            if (folder / name).is_file():
                writer.write_bytes(name, (folder / name).read_bytes())
        matrices = {stored[name] for name, tensor in tensors.items() if len(tensor.shape) > 1}
        writer.finish(
            source=folder.resolve().name if Path(source).exists() else str(source),
            dtype=matrices.pop() if len(matrices) == 1 else "mixed",
        )


def _files(tensors: dict[str, SourceTensor], config: BloomConfig, folder: Path) -> list[ArrayFile]:
    """The files to write, once the checkpoint is known to hold just their arrays."""
    hidden, vocab = config.hidden_size, config.vocab_size
    files = model_files(config.num_hidden_layers, hidden, vocab)
    head = head_file(hidden, vocab)
    if "lm_head.weight" in tensors:
        files.append(head)
    expected = {file.prefix + name: shape for file in files for name, shape in file.shapes.items()}
    check_shapes({name: tensor.shape for name, tensor in tensors.items()}, expected, folder)
    if head in files and _equal(tensors["lm_head.weight"], tensors["word_embeddings.weight"]):
        files.remove(head)  # tied, and written out all the same
        del tensors["lm_head.weight"]
    return files


def _stored_dtype(tensor: SourceTensor, dtype: str) -> str:
    """The type in which a tensor is to be stored."""
    if dtype == "keep" or len(tensor.shape) == 1:
        return tensor.dtype
    if dtype == "float16" and tensor.dtype == "bfloat16":
        raise NumpyBloomError(
            f"{tensor} is bfloat16, whose range float16 does not have; choose another dtype"
        )
    return dtype


def _stretches(tensor: SourceTensor) -> Iterator[slice]:
    """The tensor's rows, about `ROWS_BYTES` at a time."""
    rows = tensor.shape[0]
    row_bytes = math.prod(tensor.shape[1:]) * STORED[tensor.dtype].itemsize
    step = max(1, ROWS_BYTES // row_bytes)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _converted(tensor: SourceTensor, dtype: str, progress: tqdm) -> Iterator[Stored]:
    """The tensor's values in another type, checked to be finite, some rows at a time."""
    for rows in _stretches(tensor):
        values = tensor.read_rows(rows.start, rows.stop)
        progress.update(values.nbytes)
        if not all_finite(values, tensor.dtype):
            raise NumpyBloomError(f"{tensor} holds NaN or inf; download the checkpoint again")
        if dtype != tensor.dtype:
            values = narrow(widen(values, tensor.dtype), dtype)
            if not all_finite(values, dtype):
                raise NumpyBloomError(f"{tensor} has values too large for {dtype}")
        yield values


def _equal(a: SourceTensor, b: SourceTensor) -> bool:
    """Whether two tensors of one shape hold the same numbers."""
    return all(
        np.array_equal(
            widen(a.read_rows(rows.start, rows.stop), a.dtype),
            widen(b.read_rows(rows.start, rows.stop), b.dtype),
        )
        for rows in _stretches(a)
    )
