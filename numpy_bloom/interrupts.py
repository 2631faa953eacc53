"""Ctrl-C ends a command: also while it is still being imported, and where Python drops it.

Both packages import this before all that takes time. Only `python -m` with one of their commands is
meant: other programs that import them have their own way.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells count."""

AGAIN_SECONDS = 0.01
"""After which Ctrl-C comes again: long enough for most destructors to be over."""


def _end(_signal: int, _frame: FrameType | None) -> None:
    if sys.stderr is not None:
        print("\ninterrupted", file=sys.stderr, flush=True)  # behind the ^C of the terminal
    os._exit(INTERRUPTED)  # an exception might be turned into another one by what is imported


@contextmanager
def as_exceptions() -> Iterator[None]:
    """Within it Ctrl-C is an exception: the command has been imported.

    An exception that leaves a destructor, or a callback of the garbage collector, is dropped by
    Python (https://docs.python.org/3/library/sys.html#sys.unraisablehook). This one comes again.
    """
    if signal.getsignal(signal.SIGINT) is not _end:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = _raise_again
    try:
        yield
    finally:
        sys.unraisablehook = sys.__unraisablehook__
        if signal.getsignal(signal.SIGALRM) is signal.default_int_handler:
            left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            if left:
                raise KeyboardInterrupt


def _raise_again(dropped: "sys.UnraisableHookArgs") -> None:
    if issubclass(dropped.exc_type, KeyboardInterrupt):  # raised from here it would be dropped
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
    else:
        sys.__unraisablehook__(dropped)


def _is_command() -> bool:
    """Whether Python is about to run one of our modules.

    Until it has found the module of `-m`, `sys.argv` has that in place of the module's path
    (https://docs.python.org/3/using/cmdline.html#cmdoption-m).
    """
    module = sys.orig_argv[-len(sys.argv)] if sys.argv[:1] == ["-m"] else ""
    return module.partition(".")[0] in ("conversion", "numpy_bloom")


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
