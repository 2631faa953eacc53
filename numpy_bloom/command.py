"""What all commands share: how they end."""

import argparse
import os
import sys
from collections.abc import Callable

from numpy_bloom.errors import NumpyBloomError

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells count."""


def run_command(main: Callable[[], None], name: str) -> int:
    """Run a command's main function and turn its end into an exit code.

    Args:
        main: parses, calls, prints.
        name: stands before an error's text.

    Returns:
        0; 1 for a failure, told in one line on stderr; 130 after Ctrl-C.
    """
    try:
        main()
        sys.stdout.flush()
    except NumpyBloomError as error:
        return _failed(name, str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # spares the interpreter's last flush
        return _failed(name, "stdout was closed before all was written")
    except OSError as error:
        return _failed(name, str(error))
    except MemoryError as error:
        return _failed(name, f"out of memory: {error}")
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _failed(name: str, text: str) -> int:
    print(f"{name}: error: {' '.join(text.split())}", file=sys.stderr)
    return 1


def parser(module: str, description: str, example: str) -> argparse.ArgumentParser:
    """An argument parser for `python -m module` whose help ends with an example."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=f"example: {example}",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
