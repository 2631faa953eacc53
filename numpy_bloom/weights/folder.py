"""The folder of a converted model: which files it has, and what is in them.

docs/format.md describes the format for other tools.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from numpy_bloom.errors import NumpyBloomError, listing
from numpy_bloom.weights.dtypes import FLOATING
from numpy_bloom.weights.formats import BY_STORED_DTYPE, Format
from numpy_bloom.weights.manifest import (
    ARRAYS_SUFFIX,
    MANIFEST,
    check_sizes,
    read_manifest,
    way_out,
)
from numpy_bloom.weights.safetensors_file import StoredArray, read_header
from numpy_bloom.weights.stored_matrix import StoredMatrix

EMBEDDINGS = "embeddings.safetensors"
FINAL_LAYERNORM = "final_layernorm.safetensors"
LM_HEAD = "lm_head.safetensors"

Shapes = dict[str, tuple[int, ...]]


def block_file(block: int) -> str:
    """Name of the file that holds one block, counted from 0."""
    return f"block_{block:03d}.safetensors"


def block_shapes(hidden_size: int) -> Shapes:
    """Names and shapes of the 12 arrays of a block, in the order in which a pass uses them."""
    h = hidden_size
    return {
        "input_layernorm.weight": (h,),
        "input_layernorm.bias": (h,),
        "self_attention.query_key_value.weight": (3 * h, h),
        "self_attention.query_key_value.bias": (3 * h,),
        "self_attention.dense.weight": (h, h),
        "self_attention.dense.bias": (h,),
        "post_attention_layernorm.weight": (h,),
        "post_attention_layernorm.bias": (h,),
        "mlp.dense_h_to_4h.weight": (4 * h, h),
        "mlp.dense_h_to_4h.bias": (4 * h,),
        "mlp.dense_4h_to_h.weight": (h, 4 * h),
        "mlp.dense_4h_to_h.bias": (h,),
    }


class ArrayFile(NamedTuple):
    """One file of array data.

    Attributes:
        name: of the file.
        prefix: what the arrays' names begin with in a checkpoint but not in this file, so that
            all blocks' files look alike: `h.3.`, or nothing.
        shapes: of the arrays it must hold.
    """

    name: str
    prefix: str
    shapes: Shapes


def model_files(blocks: int, hidden_size: int, vocab_size: int) -> list[ArrayFile]:
    """Every array file of a model, in the order of a pass.

    The file of an untied head, `head_file`, is not among them: few checkpoints have one.
    """
    h = hidden_size
    embeddings: Shapes = {
        "word_embeddings.weight": (vocab_size, h),
        "word_embeddings_layernorm.weight": (h,),
        "word_embeddings_layernorm.bias": (h,),
    }
    final_layernorm: Shapes = {"ln_f.weight": (h,), "ln_f.bias": (h,)}
    return [
        ArrayFile(EMBEDDINGS, "", embeddings),
        *(ArrayFile(block_file(i), f"h.{i}.", block_shapes(h)) for i in range(blocks)),
        ArrayFile(FINAL_LAYERNORM, "", final_layernorm),
    ]


def head_file(hidden_size: int, vocab_size: int) -> ArrayFile:
    """The file of a head that is not the word embeddings."""
    return ArrayFile(LM_HEAD, "", {"lm_head.weight": (vocab_size, hidden_size)})


def head_files(manifest: Mapping[str, Any]) -> list[str]:
    """The files that make logits of the last block's output, in the order of their use."""
    return [FINAL_LAYERNORM, LM_HEAD if LM_HEAD in manifest["files"] else EMBEDDINGS]


def check_shapes(found: Shapes, expected: Shapes, path: Path) -> None:
    """Compare the arrays that `path` holds with those it must hold; a size of -1 stands for any.

    Raises:
        NumpyBloomError: names what is missing, unknown or of another shape.
    """
    problems = [f"'{name}' is missing" for name in expected if name not in found]
    problems += [f"'{name}' is unknown" for name in found if name not in expected]
    problems += [
        f"'{name}' has shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape and (shape != (-1,) or len(found[name]) != 1)
    ]
    if problems:
        raise NumpyBloomError(f"{path}: {listing(problems, '; ')}")


class FileArrays(NamedTuple):
    """What one array file holds, by name."""

    vectors: dict[str, StoredArray]
    matrices: dict[str, StoredMatrix]


@dataclass(frozen=True)
class Folder:
    """An opened converted model: the place of each array, checked against the config's sizes.

    Attributes:
        path: the folder.
        files: what those of `model_files` (and `LM_HEAD`, if the head is untied) hold that were
            opened, by file name.
        manifest: the parsed manifest.json.
    """

    path: Path
    files: Mapping[str, FileArrays]
    manifest: dict[str, Any]

    @classmethod
    def open(
        cls,
        path: Path,
        blocks: int,
        hidden_size: int,
        vocab_size: int,
        *,
        only: range | None = None,
        embeds: bool = True,
        unembeds: bool = True,
    ) -> "Folder":
        """Read all headers and compare the sizes of all files, names and shapes.

        Args:
            path: the folder.
            blocks, hidden_size, vocab_size: the model's sizes.
            only: the blocks that are wanted; files of others need not be there. Default: all.
            embeds: whether the word embeddings are wanted, to look up tokens.
            unembeds: whether the last norm and the head are wanted.

        Raises:
            NumpyBloomError: the folder is no converted model, or what is wanted is not complete.
        """
        manifest = read_manifest(path)
        entries = manifest["files"]
        check_listing(path, entries, blocks)
        inside = [block_file(i) for i in (range(blocks) if only is None else only)]
        head = head_files(manifest) if unembeds else []
        wanted = {*inside, *head, *([EMBEDDINGS] if embeds else [])}
        files = listed_files(entries, blocks, hidden_size, vocab_size)
        others = {file.name for file in files} - wanted
        check_sizes(path, {name: entry for name, entry in entries.items() if name not in others})
        opened = {file.name: read_file(path, file) for file in files if file.name in wanted}
        return cls(path, opened, manifest)

    @property
    def head(self) -> str | None:
        """The file of the matrix that makes logits, if it was opened."""
        head = head_files(self.manifest)
        return head[-1] if set(head) <= self.files.keys() else None


def check_listing(path: Path, names: Collection[str], blocks: int) -> None:
    """See that a folder's manifest lists the array files of a model of so many blocks.

    Raises:
        NumpyBloomError: it lacks one, or lists others.
    """
    wrong = next(listing_faults(names, blocks), None)
    if wrong:
        raise NumpyBloomError(f"{path / MANIFEST} {wrong}; {way_out(path)}")


def listing_faults(names: Collection[str], blocks: int) -> Iterator[str]:
    """In which array files a manifest differs from what a model of so many blocks has.

    Of very many blocks that are missing, not all are told: the config may ask for any number.
    """
    first = range(min(blocks, len(names) + 1))  # not all of these are there if not all blocks are
    expected = [EMBEDDINGS, FINAL_LAYERNORM, *map(block_file, first)]
    for name in expected:
        if name not in names:
            yield f"does not list {name}"
    expected.append(LM_HEAD)
    for name in names:
        if name.endswith(ARRAYS_SUFFIX) and name not in expected:
            yield f"lists {name}, which a model of {blocks} blocks does not have"


def listed_files(
    names: Collection[str], blocks: int, hidden_size: int, vocab_size: int
) -> list[ArrayFile]:
    """The files of `model_files` and, if a manifest lists it, that of an untied head."""
    files = model_files(blocks, hidden_size, vocab_size)
    if LM_HEAD in names:
        files.append(head_file(hidden_size, vocab_size))
    return files


def read_file(folder: Path, file: ArrayFile) -> FileArrays:
    """Read and check one file's header.

    Raises:
        NumpyBloomError: it is missing or unreadable, or holds other arrays.
    """
    path = folder / file.name
    found = read_header(path)
    expected: dict[str, tuple[Collection[str], tuple[int, ...]]] = {}
    formats: dict[str, type[Format]] = {}
    for name, shape in file.shapes.items():
        if len(shape) == 1 or name not in found or found[name].dtype not in BY_STORED_DTYPE:
            expected[name] = FLOATING, shape
        else:
            formats[name] = BY_STORED_DTYPE[found[name].dtype]
            for suffix, (dtype, part) in formats[name].arrays(shape).items():
                expected[name + suffix] = [dtype], part
    shapes = {name: shape for name, (_, shape) in expected.items()}
    check_shapes({name: array.shape for name, array in found.items()}, shapes, path)
    for name, (dtypes, _) in expected.items():
        if found[name].dtype not in dtypes:
            raise NumpyBloomError(
                f"{found[name]} has type {found[name].dtype}, expected {' or '.join(dtypes)}"
            )
    vectors = {name: found[name] for name, shape in file.shapes.items() if len(shape) == 1}
    matrices = {
        name: StoredMatrix(
            format,
            file.shapes[name],
            found[name],
            {suffix: found[name + suffix] for suffix in format.arrays((1, 1)) if suffix},
        )
        for name, format in formats.items()
    }
    return FileArrays(vectors, matrices)
