"""One file of the target: its tensors read, checked and stored, one stretch of rows at a time."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import numpy as np
from tqdm import tqdm

from conversion.source_tensor import SourceTensor
from conversion.writer import FolderWriter
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.dtypes import Stored, all_finite, widen
from numpy_bloom.weights.folder import ArrayFile
from numpy_bloom.weights.formats import Encoder, encoder
from numpy_bloom.weights.safetensors_file import Spec, array_bytes

ROWS_BYTES = 4 << 20
"""How much of a tensor is read at once. Widened, rounded and compared, it takes several times as
much memory (`plan.STRETCHES`, at most)."""


def stored_dtype(tensor: SourceTensor, dtype: str) -> str:
    """The format in which a tensor is stored if its file's matrices are to be of `dtype`.

    Raises:
        NumpyBloomError: it cannot be.
    """
    if dtype == "keep" or len(tensor.shape) == 1:
        return tensor.dtype
    if dtype == "float16" and tensor.dtype == "bfloat16":
        raise NumpyBloomError(
            f"{tensor} is bfloat16, whose range float16 does not have; choose another dtype"
        )
    return dtype


def bytes_to_read(tensor: SourceTensor, encoder: Encoder) -> int:
    """What storing a tensor reads."""
    return 2 * tensor.nbytes if encoder.surveys else tensor.nbytes


def largest_stretch(tensor: SourceTensor, block_rows: int) -> int:
    """Bytes of a tensor that are read at once."""
    rows = next(stretches(tensor, block_rows), slice(0, 0))
    return tensor.nbytes // max(1, tensor.shape[0]) * rows.stop


def convert_file(
    file: ArrayFile,
    tensors: Mapping[str, SourceTensor],
    dtype: str,
    writer: FolderWriter,
    progress: tqdm,
) -> None:
    """Write one file of the target, its matrices as `dtype` says."""
    arrays: dict[str, Spec] = {}
    pieces: list[Iterable[Stored]] = []
    for name in file.shapes:
        tensor = tensors[file.prefix + name]
        stores = encoder(stored_dtype(tensor, dtype), tensor.shape)
        if stores.surveys:
            for values in _read(tensor, 1, progress):
                with _fitting(tensor):
                    stores.survey(values, tensor.dtype)
        arrays |= {name + suffix: spec for suffix, spec in stores.arrays().items()}
        pieces.append(_encoded(tensor, stores, progress))
    writer.write_arrays(file.name, arrays, chain.from_iterable(pieces))


def _encoded(tensor: SourceTensor, encoder: Encoder, progress: tqdm) -> Iterator[Stored]:
    """All that is to be written of a tensor, some rows at a time."""
    for values in _read(tensor, encoder.format.block_rows, progress):
        with _fitting(tensor):
            encoded = encoder.encode(values, tensor.dtype)
        yield encoded
    yield from encoder.beside()


@contextmanager
def _fitting(tensor: SourceTensor) -> Iterator[None]:
    """Tell of which tensor a value does not fit the type."""
    try:
        yield
    except OverflowError as error:
        raise NumpyBloomError(f"{tensor} has {error}; choose another dtype") from error


def _read(tensor: SourceTensor, block_rows: int, progress: tqdm) -> Iterator[Stored]:
    """The tensor's rows in whole blocks, checked to be finite."""
    for rows in stretches(tensor, block_rows):
        values = tensor.read_rows(rows.start, rows.stop)
        progress.update(values.nbytes)
        if not all_finite(values, tensor.dtype):
            raise NumpyBloomError(f"{tensor} holds NaN or inf; download the checkpoint again")
        yield values


def stretches(tensor: SourceTensor, block_rows: int) -> Iterator[slice]:
    """The tensor's rows, about `ROWS_BYTES` at a time, in whole blocks."""
    rows = tensor.shape[0]
    row_bytes = array_bytes(tensor.dtype, tensor.shape[1:])
    step = max(1, ROWS_BYTES // (row_bytes * block_rows)) * block_rows
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def equal(a: SourceTensor, b: SourceTensor) -> bool:
    """Whether two tensors of one shape hold the same numbers."""
    return all(
        np.array_equal(
            widen(a.read_rows(rows.start, rows.stop), a.dtype),
            widen(b.read_rows(rows.start, rows.stop), b.dtype),
        )
        for rows in stretches(a, 1)
    )
