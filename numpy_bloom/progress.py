"""What a run tells of its weights while it runs and at its end, on stderr and for people."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from numpy_bloom.running.runner import Runner
from numpy_bloom.sizes import size_text

SECONDS_BETWEEN = 0.1
# Make sure of a line below, draw there, and come back: the text above is not touched (VT100).
_BELOW, _BACK = "\x1bD\x1b[A\x1b7\x1b[B\r", "\x1b[K\x1b8"


class PassBar:
    """Draws GB and blocks of the pass that is under way, below the text on a terminal."""

    def __init__(self, model: Runner) -> None:
        self._total = model.weight_bytes
        self._blocks = model.config.num_hidden_layers
        self._done = 0
        self._start = self._drawn = time.perf_counter()

    def __call__(self, name: str, nbytes: int) -> None:
        """Some weights have been handed to the arithmetic."""
        now = time.perf_counter()
        if self._done == 0:
            self._start = self._drawn = now
        self._done += nbytes
        if self._done >= self._total:
            self._done = 0
            self._write("")
        elif now - self._drawn > SECONDS_BETWEEN:
            self._drawn = now
            meter = tqdm.format_meter(
                self._done,
                self._total,
                now - self._start,
                ncols=78,
                prefix=f"{name}, {self._blocks} blocks",
                unit="B",
                unit_scale=True,
            )
            self._write(meter)

    def _write(self, line: str) -> None:
        sys.stdout.flush()
        print(_BELOW + line + _BACK, end="", file=sys.stderr, flush=True)


@contextmanager
def run_bar(model: Runner, name: str, passes: int) -> Iterator[None]:
    """A bar of the weights that so many passes use, on stderr if that is a terminal."""
    total = passes * model.weight_bytes
    with tqdm(desc=name, total=total, unit="B", unit_scale=True, leave=False, disable=None) as bar:
        model.watch(lambda _name, nbytes: bar.update(nbytes))
        try:
            yield
        finally:
            model.watch(lambda _name, _nbytes: None)


def reading(model: Runner, nbytes: int, seconds: float) -> str:
    """Of a line of statistics what was read from disk, and how fast.

    Nothing if all weights are in memory: rows of the embeddings, which are looked up on disk all
    the same, would only seem to be slow.
    """
    if not nbytes or model.bytes_pinned == model.weight_bytes:
        return ""
    return f"{size_text(nbytes)} read at {size_text(nbytes / seconds)}/s; "
