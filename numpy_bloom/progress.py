"""What a streamed run tells while it runs, on stderr and for people."""

import sys
import time

from tqdm import tqdm

from numpy_bloom.model.model import Model
from numpy_bloom.weights.stream import Chunk

SECONDS_BETWEEN = 0.1
# Make sure of a line below, draw there, and come back: the text above is not touched (VT100).
_BELOW, _BACK = "\x1bD\x1b[A\x1b7\x1b[B\r", "\x1b[K\x1b8"


def forecast(model: Model) -> str:
    """One line on what each pass reads and how long that takes; empty if it reads nothing.

    The disk's rate is measured with the first chunks of the first pass, which are read now.
    """
    stream = model.stream
    per_pass = stream.nbytes - stream.bytes_pinned
    if per_pass == 0:
        return ""
    rate = stream.fill()
    return (
        f"{stream.bytes_pinned / 1e9:.2f} GB of weights in memory, {per_pass / 1e9:.2f} GB read "
        f"from disk in each pass, at {rate / 1e9:.2f} GB/s: about {per_pass / rate:.2g} s a token; "
        f"each GB of memory more would save {1e9 / rate:.2g} s, and with "
        f"{model.memory_for_all / 1e9:.1f} GB nothing would be read"
    )


class PassBar:
    """Draws GB and blocks of the pass that is under way, below the text on a terminal."""

    def __init__(self, model: Model) -> None:
        self._total = model.stream.nbytes
        self._blocks = len(model.parameters.blocks)
        self._done = 0
        self._start = self._drawn = time.perf_counter()

    def __call__(self, chunk: Chunk) -> None:
        """A chunk has been handed to the arithmetic."""
        now = time.perf_counter()
        if self._done == 0:
            self._start = self._drawn = now
        self._done += chunk.nbytes
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
                prefix=f"{chunk.path.stem} of {self._blocks}",
                unit="B",
                unit_scale=True,
            )
            self._write(meter)

    def _write(self, line: str) -> None:
        sys.stdout.flush()
        print(_BELOW + line + _BACK, end="", file=sys.stderr, flush=True)
