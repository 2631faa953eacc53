"""Ctrl-C ends a command whenever it comes: while it is being imported, and where Python drops it.

Both packages import this before all that takes time. Only `python -m` with one of their commands is
meant: other programs that import them have their own way.
"""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells count."""

AGAIN_SECONDS = 0.01


def _end(_signal: int, _frame: FrameType | None) -> None:
    if sys.stderr is not None:
        print("\ninterrupted", file=sys.stderr, flush=True)  # behind the ^C of the terminal
    os._exit(INTERRUPTED)  # an exception might be turned into another one by what is imported


def begin() -> None:
    """The command has been imported: Ctrl-C is an exception from here on."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        sys.unraisablehook = _raise_again


def _raise_again(dropped: "sys.UnraisableHookArgs") -> None:
    """Interrupt once more if Python dropped the exception: one that leaves a destructor or a
    callback of the garbage collector (https://docs.python.org/3/library/signal.html).
    """
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)  # raised here it would be dropped here
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
