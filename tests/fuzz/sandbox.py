"""Runs something in a child process that may not crash, hang, or take much memory."""

import os
import resource
import signal
import tempfile
import traceback
from collections.abc import Callable

from numpy_bloom.errors import MOST_CHARACTERS, NumpyBloomError

MOST_SECONDS = 5
"""Of a processor; if it waits instead, twelve times as many."""
MOST_BYTES = 500_000_000
MOST_ADDRESSES = 4_000_000_000
"""Of address space, which libraries reserve without using it."""


def run(action: Callable[[], object]) -> str | None:
    """Run an action that may raise `NumpyBloomError` and nothing else.

    Returns:
        The error's text; None if there was none.
    """
    with tempfile.TemporaryFile() as told:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        child = os.fork()
        if child == 0:
            _act(action, told.fileno())
        _, status, usage = os.wait4(child, 0)
        told.seek(0)
        text = told.read().decode(errors="replace")
    grown = 1024 * (usage.ru_maxrss - before)
    assert grown <= MOST_BYTES, f"takes {grown:,} bytes\n{text}"
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        raise AssertionError(f"ends with {name}\n{text}")
    assert os.WEXITSTATUS(status) in (0, 1), text
    return text if os.WEXITSTATUS(status) else None


def _act(action: Callable[[], object], told: int) -> None:
    """The child's life. Whatever it or a library prints goes to `told`."""
    code = 2
    try:
        os.dup2(told, 1)
        os.dup2(told, 2)
        os.fsync = lambda _handle: None  # what is written here need not last
        for name in (signal.SIGXCPU, signal.SIGALRM):
            signal.signal(name, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
        signal.alarm(12 * MOST_SECONDS)
        try:
            action()
            code = 0
        except NumpyBloomError as error:
            text = str(error)
            assert text.isprintable() and 0 < len(text) <= MOST_CHARACTERS
            os.ftruncate(told, 0)
            os.pwrite(told, text.encode(), 0)
            code = 1
    except BaseException:
        os.write(told, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(code)
