"""Command: check a converted folder. `python -m conversion.verify --help`"""

import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from numpy_bloom.command import parser, path_argument, run_command
from numpy_bloom.durable import sha256
from numpy_bloom.errors import NumpyBloomError, listing, shown
from numpy_bloom.model.config import CONFIG, BloomConfig
from numpy_bloom.sizes import size_text
from numpy_bloom.weights.bounded import read_json
from numpy_bloom.weights.folder import (
    FileArrays,
    listed_files,
    listing_faults,
    read_file,
)
from numpy_bloom.weights.formats import FORMATS
from numpy_bloom.weights.manifest import (
    ARRAYS_SUFFIX,
    MANIFEST,
    SEE_VERIFY,
    entry_fault,
    parse_manifest,
    size_fault,
)
from numpy_bloom.weights.safetensors_file import read_header
from numpy_bloom.weights.stored_matrix import StoredMatrix, read_small

DAMAGED = (
    "convert {files} again: delete what is there of that and run {command}, which writes what is "
    "missing"
)
FOREIGN = "move {files} out of the folder"
WRONG = "{files} cannot be what a conversion wrote: convert the checkpoint again: {command}"


class Fault(NamedTuple):
    """What is wrong with one file.

    Attributes:
        file: its name.
        text: what is wrong, in one line.
        way_out: one of `DAMAGED`, `FOREIGN` and `WRONG`.
    """

    file: str
    text: str
    way_out: str


def main() -> None:
    """Parse, check, tell."""
    command = parser(
        "conversion.verify",
        "Check a converted model: sizes, checksums, and the names and shapes of its arrays.",
        "python -m conversion.verify bloom-560m",
    )
    add = command.add_argument
    add("target", type=path_argument, metavar="TARGET", help="the folder that conversion wrote")
    add("--deep", action="store_true", help="look for NaN and inf among all numbers as well")
    args = command.parse_args()
    target = Path(args.target)
    manifest = parse_manifest(target)
    faults = []
    for fault in find_faults(target, manifest, deep=args.deep):
        print(fault.text, flush=True)
        faults.append(fault)
    if faults:
        many = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        ways = "; ".join(ways_out(faults, target, manifest))
        raise NumpyBloomError(f"{target} has {many}; {ways}")
    size = sum(entry["size"] for entry in manifest["files"].values())
    print(f"{target} is whole: {len(manifest['files'])} files, {size_text(size)}")


def ways_out(
    faults: Sequence[Fault], target: Path, manifest: Mapping[str, object]
) -> Iterator[str]:
    """For each kind of fault what to do, and with which files, in the order in which to do it.

    What is wrong must be replaced as a whole, and what is damaged goes with it.
    """
    kinds = {fault.way_out for fault in faults}
    for way_out in (FOREIGN, WRONG if WRONG in kinds else DAMAGED):
        files = list(dict.fromkeys(fault.file for fault in faults if fault.way_out == way_out))
        if files:
            command = _command(target, manifest, " --overwrite" if way_out == WRONG else "")
            yield way_out.format(files=listing(files), command=command)


def _command(target: Path, manifest: Mapping[str, object], overwrite: str) -> str:
    """The command that makes a model's files."""
    command = f"python -m conversion SOURCE {shlex.quote(str(target))}{overwrite}"
    hint = f"SOURCE was {shown(manifest.get('source'))}"
    for option in ("dtype", "head_dtype"):
        value = manifest.get(option)
        if isinstance(value, str) and value in FORMATS:
            command += f" --{option.replace('_', '-')} {value}"
        else:
            hint += f", {option} was {shown(value)}"
    return f"{command} ({hint})"


def find_faults(
    target: Path, manifest: Mapping[str, Any], *, deep: bool = False
) -> Iterator[Fault]:
    """Check a converted folder file by file: what is wrong with one hides no fault of another.

    Args:
        target: the folder.
        manifest: its manifest, as `parse_manifest` has it.
        deep: whether every number is looked at, too.

    Yields:
        The faults as they are found.
    """
    entries = manifest["files"]
    listed = {}
    for name, entry in entries.items():
        fault = entry_fault(name, entry)
        if fault:
            yield Fault(MANIFEST, f"{MANIFEST} {fault}", WRONG)
        else:
            listed[name] = entry
    damaged = set()
    total = sum(entry["size"] for name, entry in listed.items() if (target / name).is_file())
    with tqdm(total=total, unit="B", unit_scale=True, disable=None, desc="verifying") as progress:
        for name, entry in listed.items():
            fault = size_fault(target / name, entry["size"]) or _content_fault(
                target / name, entry["sha256"], progress
            )
            if fault:
                damaged.add(name)
                yield Fault(name, f"{name} {fault}", DAMAGED)
    yield from _not_listed(target, entries)
    yield from _wrong_arrays(target, entries, listed.keys() - damaged, deep)


def _content_fault(path: Path, checksum: str, progress: tqdm) -> str | None:
    """What is wrong with the content of a file that has the right size, or None."""
    try:
        if sha256(path, progress.update) == checksum:
            return None
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return "has another SHA-256 than when it was written"


def _not_listed(target: Path, entries: dict[str, object]) -> Iterator[Fault]:
    """What is in the folder besides the files of its manifest."""
    for path in sorted(target.iterdir()):
        if path.name not in entries and path.name != MANIFEST:
            name, where = repr(path.name), ""
            if path.is_symlink() and not path.exists():
                where = f", and is a link to {str(path.readlink())!r}, which is missing"
            yield Fault(name, f"{name} is not listed in {MANIFEST}{where}", FOREIGN)


def _wrong_arrays(
    target: Path, entries: Collection[str], sound: Collection[str], deep: bool
) -> Iterator[Fault]:
    """Where the arrays of files that are as they were written are not those of a model.

    Args:
        entries: all files of the manifest.
        sound: those that are as they were written.
    """
    if CONFIG not in entries:
        yield Fault(MANIFEST, f"{MANIFEST} does not list {CONFIG}", WRONG)
    if CONFIG not in sound:  # nothing tells which arrays there must be
        for name in sorted(sound):
            if name.endswith(ARRAYS_SUFFIX):
                with _faults_of(name) as faults:
                    read_header(target / name)
                yield from faults
        return
    config = None
    with _faults_of(CONFIG) as faults:
        config = BloomConfig.from_dict(read_json(target / CONFIG), target / CONFIG)
    yield from faults
    if config is None:
        return
    blocks = config.num_hidden_layers
    for fault in listing_faults(entries, blocks):
        yield Fault(MANIFEST, f"{MANIFEST} {fault}", WRONG)
    blocks = min(blocks, len(entries))
    for file in listed_files(entries, blocks, config.hidden_size, config.vocab_size):
        if file.name in sound:
            with _faults_of(file.name) as faults:
                arrays = read_file(target, file)
                faults.extend(_bad_numbers(file.name, arrays) if deep else [])
            yield from faults


@contextmanager
def _faults_of(file: str) -> Iterator[list[Fault]]:
    """A list to which an error is added that the `with` block ends in."""
    faults: list[Fault] = []
    try:
        yield faults
    except NumpyBloomError as error:
        faults.append(Fault(file, str(error).partition(SEE_VERIFY)[0], WRONG))


def _bad_numbers(file: str, arrays: FileArrays) -> Iterator[Fault]:
    """The arrays that hold NaN or inf, or that cannot be widened."""
    for array in arrays.vectors.values():
        with _faults_of(file) as faults:
            read_small(array)
        yield from faults
    for matrix in arrays.matrices.values():
        with _faults_of(file) as faults:
            if not _finite(matrix):
                raise NumpyBloomError(f"{matrix.array} holds NaN or inf")
        yield from faults


def _finite(matrix: StoredMatrix) -> bool:
    """Whether all numbers of a matrix are finite, looked at a tile at a time."""
    format = matrix.opened()
    return all(np.isfinite(format.widen(tile)).all() for tile in matrix.tiles(format))


if __name__ == "__main__":
    sys.exit(run_command(main, "verify"))
