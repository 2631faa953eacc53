"""Command: check a converted folder. `python -m conversion.verify --help`"""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from numpy_bloom.command import parser, run_command
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.weights.dtypes import FLOATING, STORED, all_finite
from numpy_bloom.weights.folder import MANIFEST, Folder, StoredMatrix, read_json, read_manifest
from numpy_bloom.weights.safetensors_file import StoredArray, read_stored

PIECE_BYTES = 8 << 20


def main() -> None:
    """Parse, check, tell."""
    command = parser(
        "conversion.verify",
        "Check a converted model: sizes, checksums, and the names and shapes of its arrays.",
        "python -m conversion.verify bloom-560m",
    )
    command.add_argument("target", metavar="TARGET", help="the folder that conversion wrote")
    command.add_argument(
        "--deep", action="store_true", help="look for NaN and inf among all numbers as well"
    )
    args = command.parse_args()
    files = read_manifest(Path(args.target))["files"]
    faults = 0
    for fault in find_faults(Path(args.target), deep=args.deep):
        print(fault)
        faults += 1
    if faults:
        raise NumpyBloomError(
            f"{args.target} has {faults} fault{'s' if faults > 1 else ''}; "
            "convert the checkpoint again"
        )
    size = sum(entry["size"] for entry in files.values())
    print(f"{args.target} is whole: {len(files)} files, {size / 1e9:.3f} GB")


def find_faults(target: Path, *, deep: bool = False) -> Iterator[str]:
    """Check a converted folder, file by file, then as a whole.

    Args:
        target: the folder.
        deep: whether every number is looked at, too.

    Yields:
        One line for each fault; it begins with the name of the file or array.

    Raises:
        NumpyBloomError: it is no converted model at all.
    """
    files = read_manifest(target)["files"]
    whole = True
    total = sum(_size(target / name) for name in files)
    with tqdm(total=total, unit="B", unit_scale=True, disable=None, desc="verifying") as progress:
        for name, entry in files.items():
            fault = _file_fault(target / name, entry, progress)
            if fault:
                whole = False
                yield f"{name} {fault}"
    if not whole:
        return  # what the headers of damaged files say is worth nothing
    try:
        config = BloomConfig.from_dict(read_json(target / "config.json"))
        sizes = config.num_hidden_layers, config.hidden_size, config.vocab_size
        folder = Folder.open(target, *sizes)
    except NumpyBloomError as error:
        yield str(error)
        return
    if deep:
        yield from _not_finite(folder)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _file_fault(path: Path, entry: object, progress: tqdm) -> str | None:
    """What is wrong with one file, or None."""
    if not isinstance(entry, dict) or not {"size", "sha256"} <= entry.keys():
        return f"has no size and checksum in {MANIFEST}"
    if not path.is_file():
        return "is missing"
    if _size(path) != entry["size"]:
        return f"has {_size(path):,} bytes, expected {entry['size']:,}"
    checksum = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                checksum.update(piece)
                progress.update(len(piece))
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if checksum.hexdigest() != entry["sha256"]:
        return "has another SHA-256 than when it was written"
    return None


def _not_finite(folder: Folder) -> Iterator[str]:
    """A line for each array that holds NaN or inf."""
    for file in folder.vectors:
        for array in folder.vectors[file].values():
            if not _finite(array):
                yield f"{array} holds NaN or inf"
        for matrix in folder.matrices[file].values():
            beside = [array for array in matrix.beside.values() if array.dtype in FLOATING]
            if not all(_finite(array) for array in beside) or not _matrix_finite(matrix):
                yield f"{matrix.array} holds NaN or inf"


def _finite(array: StoredArray) -> bool:
    return all_finite(read_stored(array), array.dtype)


def _matrix_finite(matrix: StoredMatrix) -> bool:
    """Whether all numbers of a matrix are finite, looked at a tile at a time."""
    beside = {suffix: read_stored(array) for suffix, array in matrix.beside.items()}
    format = matrix.format(matrix.shape, beside)
    rows, columns = matrix.shape
    for start in range(0, rows, format.tile_rows):
        stop = min(start + format.tile_rows, rows)
        begin, end = format.nbytes(start, columns), format.nbytes(stop, columns)
        content = np.fromfile(
            matrix.array.path,
            STORED["uint8"],
            count=end - begin,
            offset=matrix.array.offset + begin,
        )
        if not np.isfinite(format.widen(format.tile(content, slice(start, stop)))).all():
            return False
    return True


if __name__ == "__main__":
    sys.exit(run_command(main, "verify"))
