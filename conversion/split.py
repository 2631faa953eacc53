"""Command: cut a converted model for several machines. `python -m conversion.split --help`"""

import os
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from conversion.target import PARTIAL, beside
from numpy_bloom.cluster.plan import Part, Sizes, Worker, deal, needed_files
from numpy_bloom.command import parser, path_argument, run_command
from numpy_bloom.durable import sync_folder
from numpy_bloom.errors import NumpyBloomError, OptionError, check_whole, failing_as
from numpy_bloom.model.config import read_config
from numpy_bloom.sizes import size_text
from numpy_bloom.weights.folder import check_listing
from numpy_bloom.weights.manifest import ARRAYS_SUFFIX, MANIFEST, read_manifest


def main() -> None:
    """Parse, split, tell."""
    command = parser(
        "conversion.split",
        "Cut a converted model into folders, each with consecutive blocks and all small files, to\n"
        "be copied to the same path on as many machines. They share disk space with the model\n"
        "where the file system has hard links.",
        "python -m conversion.split bloom-176b --parts 3",
    )
    add = command.add_argument
    add("target", type=path_argument, metavar="TARGET", help="what conversion has written")
    add("--parts", type=int, required=True, metavar="N", help="how many")
    args = command.parse_args()
    for folder, part in split(Path(args.target), args.parts):
        print(f"{folder}: {part}, {size_text(part.nbytes)}")


def split(target: Path, parts: int) -> list[tuple[Path, Part]]:
    """Write the folders `TARGET.1-of-N` to `TARGET.N-of-N`. Each has its name when it is complete.

    Returns:
        For each folder its path, and the blocks that are in it.

    Raises:
        NumpyBloomError: the model is not complete, a folder is there already, the disk is full, or
            there are more parts than blocks.
    """
    check_whole("parts", parts, 1)
    manifest = read_manifest(target)
    blocks = read_config(target).num_hidden_layers
    check_listing(target, manifest["files"], blocks)
    sizes = Sizes.of(manifest, blocks)
    names = frozenset(name for name in manifest["files"] if (target / name).is_file())
    workers = min(parts, blocks + 1)  # no more get anything: one for each block, one for the head
    dealt = deal([Worker(f"{i:04d}", 1, 1, names) for i in range(workers)], sizes, target)
    if len(dealt) < parts:
        raise OptionError(
            f"parts is {parts}; expected a value in [1, {len(dealt)}], for no more folders get "
            "anything"
        )
    folders = [beside(target, f".{i + 1}-of-{parts}") for i in range(parts)]
    for folder in folders:
        if folder.exists():
            raise NumpyBloomError(f"{folder} is there already; remove it first")
    small = [MANIFEST, *(name for name in names if not name.endswith(ARRAYS_SUFFIX))]
    for folder, part in zip(folders, tqdm(dealt, desc="splitting", disable=None), strict=True):
        _write(target, [*small, *needed_files(part, sizes)], folder)
    return list(zip(folders, dealt, strict=True))


def _write(target: Path, names: list[str], folder: Path) -> None:
    """Link or copy files into a new folder."""
    partial = beside(folder, PARTIAL)
    if partial.exists() or partial.is_symlink():
        raise NumpyBloomError(f"{partial} is there, perhaps of a run that was cut off; remove it")
    with failing_as(f"cannot write {folder}"):
        partial.mkdir()
        try:
            for name in dict.fromkeys(names):
                source = (target / name).resolve()  # blocks may be links
                try:
                    os.link(source, partial / name)
                except OSError:  # another file system, or one without links
                    shutil.copy2(source, partial / name)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(folder.parent)


if __name__ == "__main__":
    sys.exit(run_command(main, "split"))
