"""The conditions of a model larger than memory: a memory limit, a cold page cache, a steady disk.

Both need root on Linux. Control groups of version 1 and 2 are known:
https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@contextmanager
def memory_group(nbytes: int) -> Iterator[Path]:
    """A control group whose processes may hold so much together, cached files included.

    Raises:
        OSError: it cannot be made here.
    """
    version_1 = (CGROUPS / "memory/memory.limit_in_bytes").exists()
    root = CGROUPS / "memory" if version_1 else CGROUPS
    if not version_1:
        (root / "cgroup.subtree_control").write_text("+memory")
    group = root / f"numpy-bloom-{os.getpid()}-{time.monotonic_ns()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(nbytes))
        yield group
    finally:
        _remove(group)


@contextmanager
def disk_group(path: Path, rate: int) -> Iterator[None]:
    """Hold this process, and those that it starts meanwhile, to a rate of reading from a disk.

    Disks that are shared have moods; one that is held below the worst of them is the same for all.

    Args:
        path: lies on the disk.
        rate: bytes per second.

    Raises:
        OSError: there are no control groups of version 1, or no right to make one.
    """
    device = path.stat().st_dev
    group = CGROUPS / "blkio" / f"numpy-bloom-{os.getpid()}"
    group.mkdir()
    try:
        limit = f"{os.major(device)}:{os.minor(device)} {rate}"
        (group / "blkio.throttle.read_bps_device").write_text(limit)
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (CGROUPS / "blkio/cgroup.procs").write_text(str(os.getpid()))
        _remove(group)


def _remove(group: Path) -> None:
    """Remove a group; its last process may take a moment to leave it."""
    for _ in range(100):
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.05)
        else:
            return


def can_limit() -> bool:
    """Whether memory groups can be made here."""
    try:
        with memory_group(1 << 30):
            return True
    except OSError:
        return False


def can_drop_page_cache() -> bool:
    """Whether files can be made cold here."""
    return os.access(DROP_CACHES, os.W_OK)


def drop_page_cache() -> None:
    """Write out what is dirty and forget all files that no process has mapped."""
    os.sync()
    DROP_CACHES.write_text("1")
