"""Processes that multiply beside this one, while all weights are in memory.

With one token in a pass a matrix takes less than a millisecond, and the threads of an interpreter
lose much of that waiting for its lock, and for each other to wake up. A process has a lock of its
own, and may look out for work without being in anybody's way. It sees the weights of this one, and
takes x and leaves its rows of the product in memory that both see (`shared`); pipes carry a few
bytes that say when.

What it computes is what a thread would have computed, bit for bit. So it may begin late, while
threads do its work, and if it ends its part is done here.
"""

import logging
import os
import pickle
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

import numpy as np

from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.formats import Format, Tile
from numpy_bloom.weights.shared import SharedMemory
from numpy_bloom.weights.team import one_blas_thread

logger = logging.getLogger(__name__)

MOST_TOKENS = 8
"""With more of them in a pass a tile takes so long that threads lose little."""

LOOKING_SECONDS = 0.0005
"""How long to look out for a message before sleeping: most of what lies between two matrices takes
less."""

PROCESS_BYTES = 50 * 10**6
"""What a process takes for itself: interpreter, libraries, scratch arrays."""

HANGS_SECONDS = 20
"""Without an answer for so long, a process counts as ended."""

BLAS_THREADS = "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"
"""What keeps BLAS from starting threads in a process that has one core."""

_COMMAND = struct.Struct("<QII")
"""Its number, the matrix's, and how many tokens."""
_ANSWER = struct.Struct("<Q")
"""The number of the command that is done. The first answer, 0, says that the process is ready."""


class Cut(NamedTuple):
    """Where a tile lies.

    Attributes:
        rows: of the matrix.
        begin, nbytes: in the shared memory.
    """

    rows: slice
    begin: int
    nbytes: int


Tiling = Sequence[tuple[Format, Sequence[Cut]]]
"""The matrices by number: how they are stored, and their tiles in order."""

Item = TypeVar("Item")


class Processes:
    """Processes that each multiply by a part of every matrix.

    Args:
        count: how many.
        weights: the memory in which the matrices lie.
        tiling: where in it.

    Raises:
        OSError: the system refuses.
    """

    def __init__(self, count: int, weights: SharedMemory, tiling: Tiling) -> None:
        self._owner = os.getpid()
        self._lock = threading.RLock()  # of the handles
        self._command = 0
        self._all: list[_Process] = []
        self._ready = 0
        self._ended = False
        for_x, for_y = exchange_bytes([format.shape for format, _ in tiling])
        self._x = SharedMemory(nbytes=for_x)
        try:
            for place in range(count):
                parts = [(format, _part(cuts, place, count)) for format, cuts in tiling]
                self._all.append(_Process(parts, weights, self._x, for_y))
        except BaseException:
            self.close()
            raise

    @property
    def ready(self) -> bool:
        """Whether all of them wait for commands, as far as is known.

        Not for a process that was forked from this one: it would take the other's answers.
        """
        if os.getpid() != self._owner:
            return False
        with self._lock:
            while self._ready < len(self._all) and not self._ended:
                answer = self._all[self._ready].look()
                if answer is None:
                    return False
                if answer != _ANSWER.pack(0):
                    self._lost()
                self._ready += 1
        return not self._ended

    def wait(self) -> None:
        """Wait until they are ready, or one has ended or hangs."""
        until = time.monotonic() + HANGS_SECONDS
        while not self.ready and not self._ended and time.monotonic() < until:
            time.sleep(LOOKING_SECONDS)

    def multiply(
        self, matrix: int, format: Format, tiles: Sequence[tuple[slice, Tile]], x: Floats, y: Floats
    ) -> None:
        """y = x · Wᵀ, once they are ready.

        Args:
            matrix: its number in the tiling.
            format: how it is stored.
            tiles: all its rows in order.
            x: (T, inputs) float32, of at most `MOST_TOKENS`.
            y: (T, outputs) float32.
        """
        product = format.product(x)

        def multiply_here(part: Sequence[tuple[slice, Tile]]) -> None:
            for rows, tile in part:
                product(tile, y[:, rows])

        with self._lock:
            if self._ended:
                multiply_here(tiles)
                return
            self._command += 1
            count = len(self._all)
            parts = [_part(tiles, place, count) for place in range(count + 1)]
            asked = [(one, part) for one, part in zip(self._all, parts, strict=False) if part]
            _floats(self._x, *x.shape)[:] = x
            for process, _ in asked:
                process.tell(_COMMAND.pack(self._command, matrix, len(x)))
            multiply_here(parts[-1])
            for process, part in asked:
                if process.wait_for(self._command):
                    rows = slice(part[0][0].start, part[-1][0].stop)
                    y[:, rows] = _floats(process.y, *y.shape)[:, rows]
                else:
                    self._lost()
                    multiply_here(part)

    def _lost(self) -> None:
        """One has ended, or hangs: none is asked any more."""
        if not self._ended:
            logger.warning("a process that helped to compute has ended; threads do its part")
        self._ended = True

    def close(self) -> None:
        """End all of them."""
        self._ended = True
        if os.getpid() == self._owner:
            for process in self._all:
                process.end()
        with self._lock:  # who multiplies now finds them ended
            for process in self._all:
                process.close()
            self._x.close()


class _Process:
    """One of them, as the others' parent sees it."""

    def __init__(
        self, tiling: Tiling, weights: SharedMemory, x: SharedMemory, y_bytes: int
    ) -> None:
        told = pickle.dumps(tiling)
        # Of its own: one that still works on what Ctrl-C cut short writes over nobody's rows.
        self.y = SharedMemory(nbytes=max(y_bytes, len(told)))
        self.y.content[: len(told)] = told
        handles = [memory.handle for memory in (weights, x, self.y)]
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from numpy_bloom.weights.processes import serve; serve({handles})"
        )
        self._popen = subprocess.Popen(
            [sys.executable, "-c", program],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | dict.fromkeys(BLAS_THREADS, "1"),
            pass_fds=handles,
            start_new_session=True,  # Ctrl-C at the terminal is not for it
        )
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._commands, self._answers = self._popen.stdin, self._popen.stdout
        os.set_blocking(self._answers.fileno(), False)

    def tell(self, command: bytes) -> None:
        """Give a command; if it has ended, `wait_for` will tell."""
        with suppress(BrokenPipeError):
            self._commands.write(command)

    def look(self) -> bytes | None:
        """An answer; None if there is none yet, empty if there will be none."""
        return self._answers.read(_ANSWER.size)

    def wait_for(self, command: int) -> bool:
        """Wait until a command is done; False if the process has ended, or hangs.

        Answers to commands before it, which Ctrl-C left behind, are passed over.
        """
        while answer := _next_message(self._answers.fileno(), _ANSWER.size, HANGS_SECONDS):
            if _ANSWER.unpack(answer) == (command,):
                return True
        return False

    def end(self) -> None:
        """End it. It has nothing that could be lost."""
        self._popen.kill()
        self._popen.wait()

    def close(self) -> None:
        """Let go of what was shared with it."""
        self._commands.close()
        self._answers.close()
        self.y.close()


def serve(handles: Sequence[int]) -> None:
    """What such a process does until its parent ends it, or has ended itself."""
    weights, shared_x, shared_y = map(SharedMemory, handles)
    tiling: Tiling = pickle.loads(shared_y.content)
    matrices = []
    for format, cuts in tiling:
        tiles = []
        for rows, begin, nbytes in cuts:
            stored = np.frombuffer(weights.content, np.uint8, nbytes, begin)
            tiles.append((rows, format.tile(stored, rows)))
        matrices.append((format, tiles))
    commands, answers = sys.stdin.fileno(), sys.stdout.fileno()
    os.set_blocking(commands, False)
    os.write(answers, _ANSWER.pack(0))
    with one_blas_thread(), np.errstate(invalid="ignore", over="ignore"):
        while message := _next_message(commands, _COMMAND.size):
            command, matrix, tokens = _COMMAND.unpack(message)
            format, tiles = matrices[matrix]
            outputs, inputs = format.shape
            y = _floats(shared_y, tokens, outputs)
            product = format.product(_floats(shared_x, tokens, inputs))
            for rows, tile in tiles:
                product(tile, y[:, rows])
            os.write(answers, _ANSWER.pack(command))


def _part(items: Sequence[Item], place: int, processes: int) -> Sequence[Item]:
    """The items of one of some processes; the place behind theirs is their parent's."""
    begin, end = (len(items) * some // (processes + 1) for some in (place, place + 1))
    return items[begin:end]


def exchange_bytes(shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """Memory for x and for y, for matrices of these shapes."""
    outputs, inputs = (max(sizes) for sizes in zip(*shapes, strict=True))
    return 4 * MOST_TOKENS * inputs, 4 * MOST_TOKENS * outputs


def _floats(memory: SharedMemory, tokens: int, columns: int) -> Floats:
    """x or y (T, columns) in the memory that both sides see."""
    return np.frombuffer(memory.content, np.float32, tokens * columns).reshape(tokens, columns)


def _next_message(handle: int, nbytes: int, seconds: float | None = None) -> bytes:
    """Read a message from a pipe that does not block.

    Empty if its other end was closed, or nothing has come for so many seconds.
    """
    until = time.perf_counter() + LOOKING_SECONDS
    while True:
        try:
            return os.read(handle, nbytes)
        except BlockingIOError:
            if time.perf_counter() > until:
                poll = select.poll()
                poll.register(handle, select.POLLIN)
                if not poll.poll(None if seconds is None else 1000 * seconds):
                    return b""
