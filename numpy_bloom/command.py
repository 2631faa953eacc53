"""What all commands share: how they read a text, and how they end."""

import argparse
import errno
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from numpy_bloom import interrupts
from numpy_bloom.errors import NumpyBloomError, OptionError

FAILED = 1
WRONG_USAGE = 2
"""As argparse has it."""


def run_command(main: Callable[[], None], name: str) -> int:
    """Run a command's main function and turn its end into an exit code.

    Args:
        main: parses, calls, prints.
        name: stands before an error's text.

    Returns:
        0; 1 for a failure and 2 for an option out of range, told in one line on stderr; 130 after
        Ctrl-C.
    """
    try:
        with interrupts.as_exceptions():
            _prepare_streams()
            with _log_on_stderr():
                main()
            sys.stdout.flush()
    except OptionError as error:
        return _failed(name, str(error), WRONG_USAGE)
    except BrokenPipeError:
        return _failed(name, "stdout was closed before all was written")
    except (NumpyBloomError, OSError) as error:
        return _failed(name, _text(error))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "start new thread" not in str(error):
            raise
        way_out = "free some, or give --memory and --threads less where there are such options"
        return _failed(name, f"out of memory; {way_out}. {error}")
    except KeyboardInterrupt:
        print(file=sys.stderr)  # behind the ^C of the terminal
        return _failed(name, "interrupted", interrupts.INTERRUPTED)
    return 0


def _text(error: NumpyBloomError | OSError) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"cannot write stdout: {error.strerror}"  # files have names in their errors
    return str(error)


def _prepare_streams() -> None:
    """Write UTF-8 whatever the locale, and do without a stderr that is closed."""
    if sys.stderr is None:
        sys.stderr = io.StringIO()  # print would take stdout instead
    if sys.stdout is None:
        raise NumpyBloomError("stdout is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # of names of files


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Show what the package logs. A program that imports it hears of it only if it asks."""
    logger, handler = logging.getLogger("numpy_bloom"), logging.StreamHandler()
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _failed(name: str, text: str, code: int = FAILED) -> int:
    try:
        sys.stdout.flush()
    except (OSError, AttributeError):
        # Spares the interpreter's last flush, which would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    kind = "" if code == interrupts.INTERRUPTED else "error: "
    print(f"{name}: {kind}{' '.join(text.splitlines()).strip()}", file=sys.stderr)
    return code


def rate(per_second: float) -> str:
    """A rate in three digits, or as a whole number if it has more."""
    return f"{per_second:.3g}" if per_second < 1000 else f"{per_second:,.0f}"


def text_argument(argument: str) -> str:
    """The text that an argument stands for: itself, or what stdin holds if it is `-`.

    One line break at the end of stdin is no part of it.

    Raises:
        NumpyBloomError: stdin is closed, or the text is not UTF-8.
    """
    try:
        if argument != "-":
            return os.fsencode(argument).decode()  # UTF-8 whatever the locale
        if sys.stdin is None:
            raise NumpyBloomError("stdin is closed; expected a text there")
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8", errors="strict")
        return sys.stdin.read().removesuffix("\n")  # as `echo` and editors leave it
    except UnicodeError as error:
        raise NumpyBloomError(f"the text is not UTF-8: {error}") from error


def path_argument(argument: str) -> str:
    """A path on the command line: not the empty one, which would be the current folder."""
    if not argument:
        raise argparse.ArgumentTypeError("is '', expected a path")
    return argument


def parser(module: str, description: str, example: str) -> argparse.ArgumentParser:
    """An argument parser for `python -m module` whose help ends with an example."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=f"example: {example}",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model_options(command: argparse.ArgumentParser, *, cluster: bool = False) -> None:
    """Add the options of `load`: the model, its memory and threads, and perhaps a cluster."""
    add = command.add_argument
    add(
        "--model",
        type=path_argument,
        metavar="DIR",
        help="a converted model (default: the demo model)",
    )
    add(
        "--memory",
        metavar="SIZE",
        help="for weights, cache and all else, such as 2GB (default: what is free)",
    )
    add("--threads", type=int, metavar="N", help="default: the cores available")
    if cluster:
        add(
            "--cluster",
            metavar="ADDRESS",
            help="spread the blocks over the workers of the Dask scheduler at tcp://HOST:PORT, or "
            "over N processes here with local:N; memory and threads are then those of each worker",
        )
