"""The exceptions that numpy-bloom raises on purpose."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral

MOST_CHARACTERS = 4000
"""Of an error's text. What a hostile file may have put into it is cut out of the middle."""
MOST_SHOWN = 60
"""Characters of a value in it."""


class NumpyBloomError(Exception):
    """Something a user can act on: its text names the thing, what was expected, and the way out.

    Commands print the text as one line and exit with code 1; a traceback means a bug. The text
    may quote names and values of a file that nobody trusts: it is made one printable line.
    """

    def __init__(self, text: str) -> None:
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        if len(text) > MOST_CHARACTERS:
            text = f"{text[: MOST_CHARACTERS // 2]} … {text[-MOST_CHARACTERS // 4 :]}"
        super().__init__(text)


class OptionError(NumpyBloomError):
    """An option's value is out of range: wrong usage, with which commands exit with code 2."""


def listing(items: Sequence[str], separator: str = ", ", most: int = 5) -> str:
    """Join items for one line of an error; many are cut short with their number."""
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + rest


def shown(value: object) -> str:
    """A value for one line of an error."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a huge number"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def check_whole(name: str, value: object, least: int, most: float = 10**12) -> None:
    """Check an option that must be a whole number from `least` to `most`.

    Raises:
        OptionError: it is not; the message tells what was expected.
    """
    if not isinstance(value, Integral) or int(value) < least:
        raise OptionError(f"{name} is {shown(value)}; expected a value in [{least}, inf), whole")
    if int(value) > most:
        raise OptionError(f"{name} is {shown(value)}; expected at most {most:,}")


@contextmanager
def failing_as(what: str, way_out: str = "") -> Iterator[None]:
    """Within it a failure of the disk (no permission, no room) becomes one clear line."""
    try:
        yield
    except OSError as error:
        raise NumpyBloomError(f"{what}: {error.strerror or error}{way_out}") from error
