"""The conversion itself: check every tensor, then copy it, one stretch of rows at a time."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
from numpy_bloom.weights.dtypes import STORED, Stored, all_finite, widen
from numpy_bloom.weights.folder import (
    EMBEDDINGS,
    LM_HEAD,
    ArrayFile,
    block_file,
    check_shapes,
    head_file,
    model_files,
    read_json,
)
from numpy_bloom.weights.formats import FORMATS, Encoder, encoder
from numpy_bloom.weights.safetensors_file import Spec

DTYPES = ("keep", *FORMATS)
HEAD_DTYPES = {"int8": "keep", "int4": "int8"}
"""Of the embeddings, which are the head as well: one step more careful than the blocks. Other
dtypes hold for both."""

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
    source: str | Path,
    target: str | Path,
    dtype: str = "keep",
    *,
    head_dtype: str | None = None,
    overwrite: bool = False,
) -> None:
    """Convert a Hugging Face checkpoint of a BLOOM into a folder that numpy_bloom can load.

    Every key and shape is checked before anything is written; every number is checked to be
    finite. Norms and biases keep their type. A tensor is read some 8 MB at a time (for int4, 512
    rows if they are more; whole if it is stored transposed), and twice for the integers and for
    bfloat16-packed, which must know it before its first row is written.

    Args:
        source: a local folder, or a name on the Hugging Face hub such as `bigscience/bloom-560m`.
        target: the folder to write. It appears only when the conversion is complete.
        dtype: how the big matrices are stored: `keep` stores each as it was; else `float32`,
            `bfloat16`, `float16` (refused for bfloat16 matrices, whose range float16 does not
            have), `bfloat16-packed` (12 bits, without loss; a matrix that would not shrink is
            stored as bfloat16), `int8` or `int4`.
        head_dtype: the same for the word embeddings, which are the head too. Default: that of the
            blocks, but `keep` for int8 and `int8` for int4.
        overwrite: whether a converted model at `target` may be replaced.

    Raises:
        NumpyBloomError: the checkpoint is incomplete, unreadable, of another model, or not
            finite; the target exists or cannot be written; an option is unknown.
    """
    if head_dtype is None:
        head_dtype = HEAD_DTYPES.get(dtype, dtype)
    for name, value in (("dtype", dtype), ("head_dtype", head_dtype)):
        if value not in DTYPES:
            raise OptionError(f"{name} is {value!r}; expected one of {', '.join(DTYPES)}")
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
    encoders = {
        file.prefix + name: _encoder(
            tensors[file.prefix + name],
            head_dtype if file.name in (EMBEDDINGS, LM_HEAD) else dtype,
        )
        for file in files
        for name in file.shapes
    }
    total = sum(_bytes_to_read(tensors[name], encoders[name]) for name in encoders)
    bar = tqdm(total=total, unit="B", unit_scale=True, disable=None, desc="converting")
    with writer, bar as progress:
        for file in files:
            _convert_file(file, tensors, encoders, writer, progress)
        for name in COPIED:
            if (folder / name).is_file():
                writer.write_bytes(name, (folder / name).read_bytes())
        blocks = [block_file(block) for block in range(config.num_hidden_layers)]
        writer.finish(
            source=folder.resolve().name if Path(source).exists() else str(source),
            dtype=_dtypes(files, blocks, encoders),
            head_dtype=_dtypes(files, [EMBEDDINGS, LM_HEAD], encoders),
        )


def _dtypes(files: list[ArrayFile], names: list[str], encoders: dict[str, Encoder]) -> str:
    """The format of all matrices in some files, or `mixed`."""
    found = {
        encoders[file.prefix + name].format.dtype
        for file in files
        if file.name in names
        for name, shape in file.shapes.items()
        if len(shape) > 1
    }
    return found.pop() if len(found) == 1 else "mixed"


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


def _encoder(tensor: SourceTensor, dtype: str) -> Encoder:
    """What will store a tensor."""
    if dtype == "keep" or len(tensor.shape) == 1:
        dtype = tensor.dtype
    if dtype == "float16" and tensor.dtype == "bfloat16":
        raise NumpyBloomError(
            f"{tensor} is bfloat16, whose range float16 does not have; choose another dtype"
        )
    return encoder(dtype, tensor.shape)


def _bytes_to_read(tensor: SourceTensor, encoder: Encoder) -> int:
    nbytes = math.prod(tensor.shape) * STORED[tensor.dtype].itemsize
    return 2 * nbytes if encoder.surveys else nbytes


def _convert_file(
    file: ArrayFile,
    tensors: dict[str, SourceTensor],
    encoders: dict[str, Encoder],
    writer: FolderWriter,
    progress: tqdm,
) -> None:
    """Write one file of the target."""
    arrays: dict[str, Spec] = {}
    pieces: list[Iterable[Stored]] = []
    for name in file.shapes:
        tensor, encoder = tensors[file.prefix + name], encoders[file.prefix + name]
        if encoder.surveys:
            for values in _read(tensor, 1, progress):
                with _fitting(tensor):
                    encoder.survey(values, tensor.dtype)
        arrays |= {name + suffix: spec for suffix, spec in encoder.arrays().items()}
        pieces.append(_encoded(tensor, encoder, progress))
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
    for rows in _stretches(tensor, block_rows):
        values = tensor.read_rows(rows.start, rows.stop)
        progress.update(values.nbytes)
        if not all_finite(values, tensor.dtype):
            raise NumpyBloomError(f"{tensor} holds NaN or inf; download the checkpoint again")
        yield values


def _stretches(tensor: SourceTensor, block_rows: int) -> Iterator[slice]:
    """The tensor's rows, about `ROWS_BYTES` at a time, in whole blocks."""
    rows = tensor.shape[0]
    row_bytes = math.prod(tensor.shape[1:]) * STORED[tensor.dtype].itemsize
    step = max(1, ROWS_BYTES // (row_bytes * block_rows)) * block_rows
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _equal(a: SourceTensor, b: SourceTensor) -> bool:
    """Whether two tensors of one shape hold the same numbers."""
    return all(
        np.array_equal(
            widen(a.read_rows(rows.start, rows.stop), a.dtype),
            widen(b.read_rows(rows.start, rows.stop), b.dtype),
        )
        for rows in _stretches(a, 1)
    )
