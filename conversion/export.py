"""Command: a converted model as a Hugging Face checkpoint. `python -m conversion.export --help`"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from conversion.checkpoint import HEAD_WEIGHT
from conversion.journal import is_whole
from conversion.shards import INDEX_SUFFIX, SINGLE_SAFETENSORS
from conversion.source import COPIED
from conversion.target import check_apart, check_space, free_bytes
from conversion.writer import FolderWriter
from numpy_bloom.command import parser, path_argument, run_command
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.config import read_config
from numpy_bloom.sizes import size_text
from numpy_bloom.weights.dtypes import Stored, narrow
from numpy_bloom.weights.folder import (
    LM_HEAD,
    ArrayFile,
    Folder,
    listed_files,
)
from numpy_bloom.weights.manifest import read_manifest, see_verify
from numpy_bloom.weights.safetensors_file import Spec, StoredArray, array_bytes
from numpy_bloom.weights.stored_matrix import StoredMatrix, read_small

SHARD_BYTES = 5_000_000_000
"""Most that a shard holds, unless it is a single file of the model. A block of the 176B model takes
4.93 GB, so that its checkpoint gets one shard for each, as the published one has; who converts it
again needs to have one of them at a time. (transformers' own default, 50 GB, would be ten blocks.)
"""

WIDENED = {"bfloat16-packed": "bfloat16", "int8": "float32", "int4": "float32"}
"""How matrices are written whose format is none of a checkpoint's."""

PREFIX = "transformer."
"""What the names of all tensors but the head's begin with."""


class Tensor(NamedTuple):
    """One tensor that is to be written.

    Attributes:
        name: in the checkpoint.
        dtype: a name of `FLOATING`.
        shape: its sizes.
        stored: where its numbers are.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored: StoredArray | StoredMatrix

    @property
    def path(self) -> Path:
        """The file of the model that it comes of."""
        stored = self.stored
        return stored.path if isinstance(stored, StoredArray) else stored.array.path

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in the checkpoint."""
        return array_bytes(self.dtype, self.shape)

    def values(self) -> Iterator[Stored]:
        """Its numbers, some rows at a time."""
        if isinstance(self.stored, StoredArray):
            yield read_small(self.stored)
            return
        format = self.stored.opened()
        for tile in self.stored.tiles(format):
            yield tile if format.dtype == self.dtype else narrow(format.widen(tile), self.dtype)


def main() -> None:
    """Parse and export."""
    command = parser(
        "conversion.export",
        "Make a Hugging Face checkpoint, with safetensors weights, of a converted model.",
        "python -m conversion.export bloom-560m bloom-560m-hf",
    )
    add = command.add_argument
    add("target", type=path_argument, metavar="TARGET", help="a folder that conversion wrote")
    add("hf_folder", type=path_argument, metavar="HF_FOLDER", help="the folder to write")
    args = command.parse_args()
    export(
        args.target,
        args.hf_folder,
        tell=lambda line: print(f"export: {line}", file=sys.stderr, flush=True),
    )


def export(
    target: str | Path,
    hf_folder: str | Path,
    *,
    tell: Callable[[str], None] = lambda _line: None,
) -> None:
    """Write a converted model as the checkpoint that transformers and others load.

    Numbers of a floating type, bfloat16-packed among them, are those of the original checkpoint bit
    for bit; int8 and int4 are written as what they stand for, in float32. config.json, tokenizer
    and generation files are copied. Each file is compared with its checksum before it is used. The
    export may be killed at any moment: the same call goes on with the shards that are complete.

    Args:
        target: the folder of a converted model.
        hf_folder: the folder to write. It appears only when all is complete.
        tell: is given a line on what will be done, and how to go on after a failure.

    Raises:
        NumpyBloomError: there is no such model or it is damaged; `hf_folder` exists or cannot be
            written; the disk has too little space.
    """
    target, hf_folder = Path(target), Path(hf_folder)
    if hf_folder.exists():
        raise NumpyBloomError(f"{hf_folder} exists; choose another folder")
    check_apart(target, hf_folder)
    folder, shards = _opened(target)
    entries = folder.manifest["files"]
    checksums = {name: entry["sha256"] for name, entry in entries.items()}
    with FolderWriter(hf_folder, overwrite=False, tell=tell) as writer:
        writer.resume({"options": ["export", *shards], "files": checksums})
        left = {name: shards[name] for name in shards if name not in writer.complete}
        writes = sum(tensor.nbytes for tensors in left.values() for tensor in tensors)
        free = free_bytes(writer.folder)
        tell(f"writes {size_text(writes)} in {len(left)} shards, of {size_text(free)} free")
        check_space(writes, writer.folder, "or choose another folder")
        writer.begin()
        for name in COPIED:
            if name in entries:
                _check(folder, name)
                writer.write_bytes(name, (target / name).read_bytes())
        if len(shards) > 1:
            writer.write_bytes(SINGLE_SAFETENSORS + INDEX_SUFFIX, _index(shards))
        with tqdm(
            total=writes, unit="B", unit_scale=True, disable=None, desc="exporting"
        ) as progress:
            for name, tensors in left.items():
                specs: dict[str, Spec] = {t.name: (t.dtype, t.shape) for t in tensors}
                values = _values(folder, tensors, progress)
                writer.write_arrays(name, specs, values, {"format": "pt"})
            writer.settle()
        writer.publish()


def _opened(target: Path) -> tuple[Folder, dict[str, list[Tensor]]]:
    """The model, and its tensors by the shards to which they go."""
    read_manifest(target)  # first of all: is it a converted model?
    config = read_config(target)
    sizes = config.num_hidden_layers, config.hidden_size, config.vocab_size
    folder = Folder.open(target, *sizes)
    files = [
        [_tensor(folder, file, name) for name in file.shapes]
        for file in listed_files(folder.manifest["files"], *sizes)
    ]
    if not config.tie_word_embeddings and LM_HEAD not in folder.files:
        embeddings = files[0][0]
        files.append([embeddings._replace(name=HEAD_WEIGHT)])  # else transformers makes up a head
    return folder, _cut(files)


def _tensor(folder: Folder, file: ArrayFile, name: str) -> Tensor:
    """An array of the model as a tensor of the checkpoint."""
    key = name if name == HEAD_WEIGHT else PREFIX + file.prefix + name
    if name in folder.files[file.name].vectors:
        vector = folder.files[file.name].vectors[name]
        return Tensor(key, vector.dtype, vector.shape, vector)
    matrix = folder.files[file.name].matrices[name]
    dtype = WIDENED.get(matrix.format.dtype, matrix.format.dtype)
    return Tensor(key, dtype, matrix.shape, matrix)


def _cut(files: Iterable[list[Tensor]]) -> dict[str, list[Tensor]]:
    """Whole files of the model in shards, by the names that transformers gives them."""
    shards: list[list[Tensor]] = [[]]
    for tensors in files:
        nbytes = sum(tensor.nbytes for tensor in [*shards[-1], *tensors])
        if shards[-1] and nbytes > SHARD_BYTES:
            shards.append([])
        shards[-1] += tensors
    if len(shards) == 1:
        return {SINGLE_SAFETENSORS: shards[0]}
    stem, _, suffix = SINGLE_SAFETENSORS.partition(".")
    return {
        f"{stem}-{number:05d}-of-{len(shards):05d}.{suffix}": tensors
        for number, tensors in enumerate(shards, start=1)
    }


def _index(shards: dict[str, list[Tensor]]) -> bytes:
    """Which tensor lies in which shard."""
    total = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors)
    places = {tensor.name: name for name, tensors in shards.items() for tensor in tensors}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    return (json.dumps(index, indent=2) + "\n").encode()


def _values(folder: Folder, tensors: Iterable[Tensor], progress: tqdm) -> Iterator[Stored]:
    """All numbers of some tensors, each file of the model checked before it is read."""
    checked = None
    for tensor in tensors:
        if tensor.path.name != checked:
            checked = tensor.path.name
            _check(folder, checked)
        for values in tensor.values():
            yield values
            progress.update(values.nbytes)


def _check(folder: Folder, name: str) -> None:
    """See that a file is as it was written.

    Raises:
        NumpyBloomError: it is not.
    """
    if not is_whole(folder.path / name, folder.manifest["files"][name]):
        raise NumpyBloomError(
            f"{folder.path / name} is not as it was written{see_verify(folder.path)}"
        )


if __name__ == "__main__":
    sys.exit(run_command(main, "export"))
