"""The exceptions that numpy-bloom raises on purpose."""

from numbers import Integral


class NumpyBloomError(Exception):
    """Something a user can act on: its text names the thing, what was expected, and the way out.

    Commands print the text as one line and exit with code 1; a traceback means a bug.
    """


class OptionError(NumpyBloomError):
    """An option's value is out of range: wrong usage, with which commands exit with code 2."""


def check_whole(name: str, value: object, least: int) -> None:
    """Check an option that must be a whole number of at least `least`.

    Raises:
        OptionError: it is not; the message names the interval.
    """
    if not isinstance(value, Integral) or value < least:
        raise OptionError(f"{name} is {value}; expected a value in [{least}, inf), whole")
