"""How much memory and how many cores this process may use."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")

KEPT_BYTES = 8 << 20
"""Arrays below this size are made of memory that was used before; twice as much may lie free."""


def default_memory() -> int:
    """What is free for this process, less an eighth, or 256 MB if that is more, for all else."""
    available = available_memory()
    return max(1, available - max(256 * 10**6, available // 8))


def available_memory() -> int:
    """Bytes that this process could still take without swapping or being killed.

    The least of what Linux calls available and of what is left in each memory cgroup that the
    process is in; elsewhere half of the physical memory.
    """
    meminfo = PROC / "meminfo"
    if not meminfo.is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    line = next(text for text in meminfo.read_text().splitlines() if "MemAvailable" in text)
    return min([int(line.split()[1]) * 1024, *_left_in_cgroups()])


def _left_in_cgroups() -> Iterator[int]:
    """What each limit that holds for this process leaves of itself; files cached do not count."""
    for group, version in _cgroups("memory"):
        if version == 2:
            names = "memory.max", "memory.current", "inactive_file"
        else:
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        try:
            limit, usage = ((group / name).read_text().strip() for name in names[:2])
            stat = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
        except OSError:  # outside of what this process may see
            continue
        if limit != "max":
            yield max(0, int(limit) - int(usage) + int(stat.get(names[2], 0)))


def default_threads() -> int:
    """The cores that this process may run on, or as many as its cgroups grant the time of."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min([cores, *_cores_of_cgroups()])


def _cores_of_cgroups() -> Iterator[int]:
    """How many cores' time each limit that holds for this process grants, rounded up."""
    for group, version in _cgroups("cpu"):
        names = ["cpu.max"] if version == 2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
        except OSError:  # outside of what this process may see
            continue
        if quota not in ("max", "-1"):
            yield max(1, -(-int(quota) // int(period)))


def _cgroups(controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of the cgroups that this process is in and of those above them, which need not be
    there, and their versions."""
    file = PROC / "self/cgroup"
    for line in file.read_text().splitlines() if file.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        folder = (CGROUPS / controller if controllers else CGROUPS) / path.lstrip("/")
        for group in [folder, *folder.parents]:
            yield group, 1 if controllers else 2


def keep_freed_memory() -> None:
    """Have arrays that come and go in each block made of the same memory.

    A new page costs more than the sums that go into it. glibc gives freed memory back to the system
    unless so much was once freed in one piece: then what is smaller stays with the process, twice
    as much at most (mallopt(3), M_MMAP_THRESHOLD). Elsewhere this changes nothing, nor where the
    environment says how memory is kept, as for Dask's workers (MALLOC_TRIM_THRESHOLD_).
    """
    np.empty(KEPT_BYTES, dtype=np.uint8)


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far.

    Linux tells it of this program alone; `getrusage`, elsewhere, in kilobytes or (macOS) bytes.
    """
    status = PROC / "self/status"
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # noqa: PLC0415  (not on every platform)

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
