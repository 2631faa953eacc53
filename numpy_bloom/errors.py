"""The exceptions that numpy-bloom raises on purpose."""


class NumpyBloomError(Exception):
    """Something a user can act on: its text names the thing, what was expected, and the way out.

    Commands print the text as one line and exit with code 1; a traceback means a bug.
    """


class OptionError(NumpyBloomError):
    """An option's value is out of range: wrong usage, with which commands exit with code 2."""
