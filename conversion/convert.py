"""The conversion itself: see what is there, plan, then write one file after the other."""

from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from conversion.checkpoint import EMBEDDINGS_WEIGHT, HEAD_WEIGHT, Checkpoint
from conversion.copying import convert_file, equal
from conversion.hub import HUB_NAME, HubSource
from conversion.plan import Plan, make_plan
from conversion.repair import Repair
from conversion.source import COPIED, LocalSource, Source
from conversion.target import (
    beside,
    check_apart,
    check_removable,
    check_replaceable,
    check_space,
    free_bytes,
)
from conversion.writer import FolderWriter
from numpy_bloom.errors import NumpyBloomError, OptionError
from numpy_bloom.model.config import CONFIG
from numpy_bloom.sizes import size_text
from numpy_bloom.weights.folder import EMBEDDINGS, LM_HEAD, ArrayFile
from numpy_bloom.weights.formats import BY_STORED_DTYPE, FORMATS
from numpy_bloom.weights.safetensors_file import read_header

DTYPES = ("keep", *FORMATS)
HEAD_DTYPES = {"int8": "keep", "int4": "int8"}
"""Of the embeddings, which are the head as well: one step more careful than the blocks. Other
dtypes hold for both."""


def convert(
    source: str | Path,
    target: str | Path,
    dtype: str = "keep",
    *,
    head_dtype: str | None = None,
    overwrite: bool = False,
    keep_source: bool | None = None,
    tell: Callable[[str], None] = lambda _line: None,
) -> None:
    """Convert a Hugging Face checkpoint of a BLOOM into a folder that numpy_bloom can load.

    It may be killed at any moment: the same call goes on with the files that are complete. It also
    completes a model at `target` of which files are gone: those, and any that are damaged. Every
    name and, of shards that are there, every shape is checked before anything is written; every
    number is checked to be finite. Norms and biases keep their type. A tensor is read some 4 MB at
    a time (for int4, 512 rows if they are more), and twice for the integers and for
    bfloat16-packed, which must know it before its first row is written.

    Args:
        source: a local folder, or a name on the Hugging Face hub such as `bigscience/bloom-560m`,
            whose shards are fetched when they are needed.
        target: the folder to write. It appears only when the conversion is complete.
        dtype: how the big matrices are stored: `keep` stores each as it was; else `float32`,
            `bfloat16`, `float16` (refused for bfloat16 matrices, whose range float16 does not
            have), `bfloat16-packed` (12 bits, without loss; a matrix that would not shrink is
            stored as bfloat16), `int8` or `int4`.
        head_dtype: the same for the word embeddings, which are the head too. Default: that of the
            blocks, but `keep` for int8 and `int8` for int4.
        overwrite: whether a converted model at `target` may be replaced.
        keep_source: False deletes each shard once all that came of it was read back from the disk
            and is right. Default: True for a folder; False for the hub, whose shards lie in
            `TARGET.source` meanwhile.
        tell: is given a line on what will be done, and how to go on after a failure.

    Raises:
        NumpyBloomError: the checkpoint is incomplete, unreadable, of another model, or not
            finite; the target exists or cannot be written; the disk has too little space; an
            option is unknown.
    """
    if head_dtype is None:
        head_dtype = HEAD_DTYPES.get(dtype, dtype)
    for name, value in (("dtype", dtype), ("head_dtype", head_dtype)):
        if value not in DTYPES:
            raise OptionError(f"{name} is {value!r}; expected one of {', '.join(DTYPES)}")
    target = Path(target)
    check_replaceable(target)
    repair = Repair(target) if target.exists() and not overwrite else None
    with FolderWriter(target, overwrite=overwrite, tell=tell) as writer:
        origin = _open(str(source), target, keep_source)
        if repair and isinstance(origin, LocalSource) and origin.drops:
            raise OptionError(
                f"{target} is to be repaired, which takes a part of {source} only: "
                "do without --delete-source"
            )
        if overwrite:
            check_removable(target)
        checkpoint = Checkpoint(origin)
        _convert(checkpoint, origin, dtype, head_dtype, writer, tell, repair)
    if origin.drops:
        for shard in checkpoint.shards:
            origin.drop(shard)
        origin.close()


def _convert(
    checkpoint: Checkpoint,
    source: Source,
    dtype: str,
    head_dtype: str,
    writer: FolderWriter,
    tell: Callable[[str], None],
    repair: Repair | None,
) -> None:
    """Check, plan, write all that is not complete, and put it in its place."""
    identities = {
        name: source.identity(name) for name in (CONFIG, *checkpoint.shards) if name in source.sizes
    }
    writer.resume({"options": [dtype, head_dtype], "files": identities})
    files = [file for file in checkpoint.files if file.name not in writer.complete]
    copied = [name for name in COPIED if (source.folder / name).is_file()]
    if repair:
        repair.check()
        files = [file for file in files if file.name in repair.damaged]
        copied = [name for name in copied if name in repair.damaged]
    needed = checkpoint.needs(files)
    checkpoint.open(shard for shard in needed if not source.comes_later(shard))
    heads = [file for file in checkpoint.files if file.name in (EMBEDDINGS, LM_HEAD)]
    blocks = [file for file in checkpoint.files if file not in heads]
    dtypes = dict.fromkeys((EMBEDDINGS, LM_HEAD), head_dtype)
    dtypes |= {file.name: dtype for file in blocks}
    plan = make_plan(files, checkpoint, source, dtypes)
    tell(_plan_text(plan, writer))
    check_space(plan.disk, writer.folder, "choose another target or a smaller --dtype")
    writer.begin()
    _convert_files(files, checkpoint, source, dtypes, writer, plan)
    for name in copied:
        writer.write_bytes(name, (source.folder / name).read_bytes())
    if repair:
        repair.finish(writer, source.name)
        return
    writer.finish(
        [*(file.name for file in checkpoint.files), *COPIED],
        source=source.name,
        dtype=_dtypes(blocks, writer),
        head_dtype=_dtypes(heads, writer),
    )


def _open(source: str, target: Path, keep: bool | None) -> Source:
    """The source that a user names.

    Raises:
        NumpyBloomError: there is none, or it lies within the target.
    """
    folder = Path(source)
    if folder.is_dir():
        check_apart(folder, target)
        return LocalSource(folder, drops=keep is False)
    if not HUB_NAME.fullmatch(source):
        raise NumpyBloomError(
            f"{source} is neither a folder nor a name on the hub such as bigscience/bloom-560m"
        )
    return HubSource(source, beside(target, ".source"), drops=not keep)


def _convert_files(
    files: list[ArrayFile],
    checkpoint: Checkpoint,
    source: Source,
    dtypes: dict[str, str],
    writer: FolderWriter,
    plan: Plan,
) -> None:
    """Write the files, with no more shards there than needed if the source drops them."""
    bar = tqdm(total=plan.reads, unit="B", unit_scale=True, disable=None, desc="converting")
    with bar as progress:
        for place, file in enumerate(files):
            if source.drops:
                _drop(set(checkpoint.shards) - checkpoint.needs(files[place:]), source, writer)
            checkpoint.open(checkpoint.needs([file]))
            tensors = checkpoint.tensors
            if file.name == LM_HEAD and (
                HEAD_WEIGHT not in tensors
                or equal(tensors[HEAD_WEIGHT], tensors[EMBEDDINGS_WEIGHT])  # tied, all the same
            ):
                writer.skip(file.name)
            else:
                convert_file(file, tensors, dtypes[file.name], writer, progress)
        writer.settle()
    if source.drops:
        writer.read_back()


def _drop(shards: Iterable[str], source: Source, writer: FolderWriter) -> None:
    """Remove shards, once what came of them is known to be on disk."""
    there = [shard for shard in shards if (source.folder / shard).exists()]
    if there:
        writer.read_back()
    for shard in there:
        source.drop(shard)


def _dtypes(files: list[ArrayFile], writer: FolderWriter) -> str:
    """The format of all matrices in some files, or `mixed`."""
    found = set()
    for file in files:
        if (writer.folder / file.name).exists():
            arrays = read_header(writer.folder / file.name)
            found |= {
                BY_STORED_DTYPE[arrays[name].dtype].dtype
                for name, shape in file.shapes.items()
                if len(shape) > 1
            }
    return found.pop() if len(found) == 1 else "mixed"


def _plan_text(plan: Plan, writer: FolderWriter) -> str:
    """The plan in one line."""
    kept, free = len(writer.complete), free_bytes(writer.folder)
    fetches = f"downloads {size_text(plan.fetches)}, " if plan.fetches else ""
    return (
        (f"goes on after {kept} complete files; " if kept else "")
        + fetches
        + f"reads {size_text(plan.reads)}, writes {size_text(plan.writes)}; "
        f"needs {size_text(plan.disk)} of disk, of {size_text(free)} free, "
        f"and at most {size_text(plan.memory)} of memory"
    )
