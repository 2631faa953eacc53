"""The list of a converted model's files, and whether they are there as it says."""

import re
import shlex
from pathlib import Path
from typing import Any

from numpy_bloom.errors import NumpyBloomError, shown
from numpy_bloom.weights.bounded import is_file_name, read_json

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
ARRAYS_SUFFIX = ".safetensors"
SHA256 = re.compile(r"[0-9a-f]{64}")
LARGEST_FILE = 1 << 63
"""No file system has larger ones."""
SEE_VERIFY = "; for a way out: python -m conversion.verify "
"""What an error of a damaged file ends in, and the model's folder: a conversion would not replace a
file of the right size."""


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a converted folder.

    Raises:
        NumpyBloomError: there is none, it is of another format version, or an entry is damaged.
    """
    manifest = parse_manifest(path)
    for name, entry in manifest["files"].items():
        fault = entry_fault(name, entry)
        if fault:
            raise NumpyBloomError(f"{path / MANIFEST} {fault}; {way_out(path)}")
    return manifest


def parse_manifest(path: Path) -> dict[str, Any]:
    """The same with entries that nobody has looked at.

    Raises:
        NumpyBloomError: there is none, or it is of another format version.
    """
    if not path.is_dir():
        raise NumpyBloomError(
            f"{path} is not a folder; expected a converted model, which is made of a "
            "Hugging Face checkpoint with: python -m conversion SOURCE TARGET"
        )
    if not (path / MANIFEST).is_file():
        raise NumpyBloomError(
            f"{path} is not a converted model (it has no {MANIFEST}); {made_by(path)}"
        )
    try:
        manifest = read_json(path / MANIFEST)
    except NumpyBloomError as error:
        raise NumpyBloomError(f"{error}; {way_out(path)}") from error
    version = manifest.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:  # True is 1, too
        raise NumpyBloomError(
            f"{path / MANIFEST}: format_version is {shown(version)}, expected {FORMAT_VERSION}; "
            f"{way_out(path)}"
        )
    if not isinstance(manifest.get("files"), dict):
        raise NumpyBloomError(f"{path / MANIFEST}: 'files' is missing; {way_out(path)}")
    return manifest


def way_out(folder: Path) -> str:
    """What to do about a converted model whose manifest cannot be trusted."""
    command = f"python -m conversion SOURCE {shlex.quote(str(folder))} --overwrite"
    return f"convert the checkpoint again: {command}"


def see_verify(folder: object, *, deep: bool = False) -> str:
    """Where to learn what to do about a converted model that is damaged; `deep`: by NaN or inf."""
    return f"{SEE_VERIFY}{shlex.quote(str(folder))}{' --deep' if deep else ''}"


def made_by(path: Path) -> str:
    """The command that makes a model of, or in, a folder that is none."""
    quoted = shlex.quote(str(path))
    if any(path.glob(f"block_*{ARRAYS_SUFFIX}")):
        return f"if it was one, delete it and run python -m conversion SOURCE {quoted}"
    source = quoted if (path / "config.json").exists() else "SOURCE"
    return f"convert a Hugging Face checkpoint with: python -m conversion {source} TARGET"


def entry_fault(name: str, entry: object) -> str | None:
    """What is wrong with the entry of one file, if anything is."""
    if not is_file_name(name) or name == MANIFEST:
        return f"lists {shown(name)}, expected the name of another file without folders"
    keys = entry if isinstance(entry, dict) else {}
    size, checksum = keys.get("size"), keys.get("sha256")
    if type(size) is not int or not 0 <= size < LARGEST_FILE:
        return f"says that the size of {shown(name)} is {shown(size)}, expected bytes"
    if not isinstance(checksum, str) or not SHA256.fullmatch(checksum):
        return f"says that the sha256 of {shown(name)} is {shown(checksum)}, expected 64 digits"
    return None


def size_fault(path: Path, size: int) -> str | None:
    """Why a file is not there with the size that it was written with, if it is not."""
    try:
        if path.is_file():
            found = path.stat().st_size
            return None if found == size else f"has {found:,} bytes, expected {size:,}"
        if path.is_symlink() and not path.exists():
            return f"is a link to {str(path.readlink())!r}, which is missing"
        return "is no file" if path.exists() else "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def check_sizes(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Compare the sizes of all files with their entries. A text file that is not there is not
    missed: whoever needs it says so.

    Raises:
        NumpyBloomError: one is missing or has another size.
    """
    for name, entry in files.items():
        path = folder / name
        fault = size_fault(path, entry["size"])
        if fault and (name.endswith(ARRAYS_SUFFIX) or path.exists()):
            raise NumpyBloomError(f"{path} {fault}{see_verify(folder)}")
