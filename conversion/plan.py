"""What a conversion will take: bytes to read and write, disk, memory."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from conversion.checkpoint import Checkpoint
from conversion.copying import bytes_to_read, largest_stretch, stored_dtype
from conversion.source import COPIED, Source
from conversion.source_tensor import SourceTensor, row_major
from numpy_bloom.tokenizer import TOKENIZER
from numpy_bloom.weights.folder import ArrayFile
from numpy_bloom.weights.formats import FORMATS, encoder
from numpy_bloom.weights.safetensors_file import Spec, array_bytes, header_bytes

OWN_BYTES = 150_000_000
"""The interpreter with NumPy and the hub's library."""
STRETCHES = 8
"""How often a stretch of rows is in memory, read, widened, rounded, compared, hashed, at most."""
TOKENIZERS = 12
"""How often tokenizer.json is in memory, as text and parsed, when it is checked first of all."""


@dataclass(frozen=True)
class Plan:
    """Bytes that a conversion takes; estimated from above where a shard is not there yet.

    Attributes:
        reads: of tensors, some of them twice.
        writes: to the target.
        fetches: from the hub.
        disk: the most that is taken at any time, beyond what is taken now.
        memory: of the process, in the end.
    """

    reads: int
    writes: int
    fetches: int
    disk: int
    memory: int


def make_plan(
    files: Sequence[ArrayFile], checkpoint: Checkpoint, source: Source, dtypes: Mapping[str, str]
) -> Plan:
    """Go through a conversion without doing it.

    Args:
        files: those that are still to be written, in order.
        checkpoint: with all shards open that are there.
        source: its source.
        dtypes: of the matrices of each file.

    Raises:
        NumpyBloomError: a tensor cannot be stored as asked.
    """
    sizes = {shard: source.sizes.get(shard, 0) for shard in checkpoint.shards}
    here = {shard for shard in sizes if (source.folder / shard).exists()}
    reads = fetches = stretch = 0
    writes = disk = most = sum(source.sizes.get(name, 0) for name in COPIED)
    for place, file in enumerate(files):
        gone = here - checkpoint.needs(files[place:]) if source.drops else set()
        coming = checkpoint.needs([file]) - here
        here = (here - gone) | coming
        fetches += sum(sizes[shard] for shard in coming)
        disk += sum(sizes[shard] for shard in coming) - sum(sizes[shard] for shard in gone)
        arrays: dict[str, Spec] = {}
        for tensor in _tensors(file, checkpoint, sum(sizes.values())):
            dtype = stored_dtype(tensor, dtypes[file.name])
            arrays |= {
                tensor.name + suffix: spec
                for suffix, spec in FORMATS[dtype].arrays(tensor.shape).items()
            }
            reads += bytes_to_read(tensor, encoder(dtype, tensor.shape))
            stretch = max(stretch, largest_stretch(tensor, FORMATS[dtype].block_rows))
        size = sum(map(_nbytes, arrays.values())) + len(header_bytes(arrays)) if arrays else 0
        writes += size
        disk += size
        most = max(most, disk)
    tokenizer = TOKENIZERS * source.sizes.get(TOKENIZER, 0)
    memory = OWN_BYTES + max(STRETCHES * stretch, tokenizer)
    return Plan(reads, writes, fetches, most, memory)


def _tensors(file: ArrayFile, checkpoint: Checkpoint, total: int) -> Iterator[SourceTensor]:
    """The tensors of a file; those that are not there yet have the type that the sizes tell."""
    elements = sum(math.prod(shape) for file in checkpoint.files for shape in file.shapes.values())
    guess = "float32" if total > 3 * elements else "float16"
    for name, shape in file.shapes.items():
        key = file.prefix + name
        if key in checkpoint.tensors:
            yield checkpoint.tensors[key]
        elif checkpoint.has(key):
            yield SourceTensor(Path(), key, guess, shape, 0, row_major(shape))


def _nbytes(spec: Spec) -> int:
    """Of an array; one of open size, of the few exceptions of a packed matrix, counts as empty."""
    return max(0, array_bytes(*spec))
