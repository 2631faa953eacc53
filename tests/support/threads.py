"""What the tests of threads share: who is alive, what is open, and a watch against deadlocks."""

import faulthandler
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def thread_names() -> list[str]:
    """Threads that run now; the one with which tqdm watches all its bars is its own affair."""
    return sorted(t.name for t in threading.enumerate() if t.name != "tqdm_monitor")


def open_files(folder: Path) -> list[str]:
    """What this process has open below a folder; a removed file is told as such."""
    links = []
    for handle in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(handle.readlink()))
        except FileNotFoundError:  # the handle of this very listing
            continue
    return sorted(link for link in links if link.startswith(str(folder)))


@contextmanager
def no_deadlock(seconds: float = 300) -> Iterator[None]:
    """End the whole process, with the stack of each thread, if this takes too long."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
