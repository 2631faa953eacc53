"""What memory and cores this process may use, from files of Linux that are written here."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import numpy_bloom
from numpy_bloom.weights import budget
from numpy_bloom.weights.budget import (
    available_memory,
    default_memory,
    default_threads,
)

GB = 10**9
MEMINFO = "MemTotal:       32000000 kB\nMemFree: 1 kB\nMemAvailable:   8000000 kB\nBuffers: 3 kB\n"
FREE = 8_000_000 * 1024
UNLIMITED_V1 = 9223372036854771712  # what version 1 says for none


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8.2 GB available and no limits; `proc` and `cgroup` below the folder."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    (tmp_path / "proc/self/cgroup").write_text("")
    (tmp_path / "cgroup").mkdir()
    monkeypatch.setattr(budget, "PROC", tmp_path / "proc")
    monkeypatch.setattr(budget, "CGROUPS", tmp_path / "cgroup")
    return tmp_path


def group(folder: Path, files: Mapping[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def version_1(limit: int, usage: int, cached: int = 0) -> Mapping[str, object]:
    return {
        "memory.limit_in_bytes": limit,
        "memory.usage_in_bytes": usage,
        "memory.stat": f"cache 5\ninactive_file 7\ntotal_inactive_file {cached}",
    }


def version_2(limit: int | str, usage: int, cached: int = 0) -> Mapping[str, object]:
    return {
        "memory.max": limit,
        "memory.current": usage,
        "memory.stat": f"anon 5\ninactive_file {cached}\nactive_file 9",
    }


def test_without_limits(system: Path) -> None:
    assert available_memory() == FREE
    (system / "proc/self/cgroup").write_text("0::/\n4:memory:/a/b\n9:name=systemd:/\n")
    assert available_memory() == FREE  # groups whose files are not to be seen


def test_version_2(system: Path) -> None:
    """The group's limit, less its use, but files in the page cache do not count as use."""
    (system / "proc/self/cgroup").write_text("0::/user/job\n")
    job = system / "cgroup/user/job"
    group(job, version_2("max", 5 * GB))
    assert available_memory() == FREE
    group(job, version_2(3 * GB, GB))
    assert available_memory() == 2 * GB
    group(job, version_2(3 * GB, 2 * GB, cached=GB // 2))
    assert available_memory() == GB + GB // 2
    group(job, version_2(3 * GB, 4 * GB))  # over its limit
    assert available_memory() == 0
    group(job, version_2(300 * GB, GB))  # more than the machine has
    assert available_memory() == FREE


def test_version_2_limits_of_groups_above(system: Path) -> None:
    (system / "proc/self/cgroup").write_text("0::/user/job\n")
    group(system / "cgroup/user/job", version_2(6 * GB, GB))
    group(system / "cgroup/user", version_2(4 * GB, GB))
    assert available_memory() == 3 * GB
    group(system / "cgroup", version_2(2 * GB, GB))  # a container sees its own group as the root
    assert available_memory() == GB


def test_version_1(system: Path) -> None:
    lines = "12:cpu,cpuacct:/x\n9:name=systemd:/x\n4:memory:/docker/1\n0::/\n"
    (system / "proc/self/cgroup").write_text(lines)
    job = system / "cgroup/memory/docker/1"
    group(job, version_1(UNLIMITED_V1, 5 * GB))
    assert available_memory() == FREE
    group(job, version_1(3 * GB, 2 * GB, cached=GB // 2))
    assert available_memory() == GB + GB // 2
    group(system / "cgroup/memory", version_1(2 * GB, GB, cached=0))
    assert available_memory() == GB


def test_version_1_in_a_container(system: Path) -> None:
    """The path is the host's; the container's own group is mounted as the root."""
    (system / "proc/self/cgroup").write_text("4:hugetlb,memory:/docker/1\n")
    group(system / "cgroup/memory", version_1(3 * GB, GB))
    assert available_memory() == 2 * GB


def test_without_linux(system: Path) -> None:
    (system / "proc/meminfo").unlink()
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available_memory() == physical // 2


@pytest.mark.parametrize(
    ("available", "default"),
    [(16 * GB, 14 * GB), (GB, GB - 256 * 10**6), (2048 * 10**6, 1792 * 10**6), (100 * 10**6, 1)],
)
def test_default_memory(system: Path, tmp_path: Path, available: int, default: int) -> None:
    """An eighth is left, but 256 MB at least."""
    (system / "proc/self/cgroup").write_text("0::/job\n")
    (system / "proc/meminfo").write_text("MemAvailable: 64000000 kB\n")
    group(system / "cgroup/job", version_2(available, 0))
    assert default_memory() == default
    with numpy_bloom.load() as demo:  # load takes it
        assert demo.model.memory == default


def test_this_machine() -> None:
    assert 10**6 < available_memory() < 1 << 50


@pytest.mark.usefixtures("system")
def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {3, 7, 8}, raising=False)
    assert default_threads() == 3
    with numpy_bloom.load() as demo:
        assert demo.model.store.team.threads == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert default_threads() == os.cpu_count()


@pytest.mark.parametrize(
    ("quota", "threads"), [("max", 8), (200_000, 2), (150_000, 2), (1000, 1), (10**7, 8)]
)
@pytest.mark.parametrize("version", [1, 2])
def test_threads_of_a_container(
    system: Path, monkeypatch: pytest.MonkeyPatch, version: int, quota: object, threads: int
) -> None:
    """It may run on all cores, but not for longer than some would take; rounded up."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)), raising=False)
    if version == 2:
        (system / "proc/self/cgroup").write_text("0::/user/job\n")
        group(system / "cgroup/user", {"cpu.max": f"{quota} 100000"})
        group(system / "cgroup/user/job", {"cpu.max": "max 100000"})
    else:
        (system / "proc/self/cgroup").write_text("4:memory:/x\n3:cpu,cpuacct:/docker/1\n")
        limit = -1 if quota == "max" else quota
        group(system / "cgroup/cpu", {"cpu.cfs_quota_us": limit, "cpu.cfs_period_us": 100_000})
    assert default_threads() == threads


ARRAYS_AGAIN_AND_AGAIN = """
import resource
import numpy as np
from numpy_bloom.weights import budget

budget.keep_freed_memory()
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(size << 18, dtype=np.float32) for size in (1, 2, 3, 1)]
    del arrays
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="how glibc keeps memory")
def test_arrays_are_made_of_freed_memory() -> None:
    """7 MB, the second time without new pages; else there would be some 1,800 each time."""
    command = [sys.executable, "-c", ARRAYS_AGAIN_AND_AGAIN]
    # Dask sets one of glibc's own, which then has nothing else change it.
    others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    result = subprocess.run(command, env=others, capture_output=True, text=True, check=True)
    found = result.stdout.split()
    assert max(int(pages) for pages in found[1:]) < 100 < int(found[0])
