"""What a measurement was taken on."""

import os
import platform
import time
from importlib import metadata
from pathlib import Path

from numpy_bloom.weights.budget import default_threads

LIBRARIES = (
    "numpy-bloom",
    "numpy",
    "torch",
    "transformers",
    "accelerate",
    "llama-cpp-python",
)
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe() -> dict[str, str]:
    """Processor, cores, memory, system, versions and date."""
    versions = []
    for library in LIBRARIES:
        try:
            versions.append(f"{library} {metadata.version(library)}")
        except metadata.PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": str(default_threads()),
        "memory": f"{memory / 1e9:.1f} GB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(versions),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    """Its name and those of its vector instructions that decide how fast which type is."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    name = facts.get("model name", platform.machine()).strip()
    has = [flag for flag in INSTRUCTIONS if flag in facts.get("flags", "").split()]
    return f"{name} ({', '.join(has)})" if has else name
