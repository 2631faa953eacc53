"""What tests do to converted models, and what verify tells of it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conversion.verify import Fault, find_faults
from numpy_bloom.weights.manifest import MANIFEST, parse_manifest


def vouch_for(target: Path) -> None:
    """Bring sizes and checksums in the manifest up to date with the files."""
    manifest = json.loads((target / MANIFEST).read_text())
    for name in manifest["files"]:
        content = (target / name).read_bytes()
        checksum = hashlib.sha256(content).hexdigest()
        manifest["files"][name] = {"size": len(content), "sha256": checksum}
    (target / MANIFEST).write_text(json.dumps(manifest))


def faults_of(target: Path, *, deep: bool = False) -> list[Fault]:
    return list(find_faults(target, parse_manifest(target), deep=deep))


def told(target: Path, *, deep: bool = False) -> list[str]:
    return [fault.text for fault in faults_of(target, deep=deep)]


def relist(target: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the list of files in the manifest."""
    manifest = json.loads((target / MANIFEST).read_text())
    change(manifest["files"])
    (target / MANIFEST).write_text(json.dumps(manifest))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
