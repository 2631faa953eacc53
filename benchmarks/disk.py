"""Our streamed passes against the disk itself, in alternating pairs over the same bytes.

What a pass of ours reads is read once more with nothing done to it: in order, in large requests
past the page cache, as many at once as the stream has reader threads. The ratio of the two rates
tells what the engine makes of a disk, whatever the disk's mood.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from engines import OURS, open_engine
from memory_group import drop_page_cache
from pairs import Setting
from report import markdown
from worker import Worker

from numpy_bloom.weights.files import DirectFiles, page_buffer
from numpy_bloom.weights.store import CHUNK_BYTES
from numpy_bloom.weights.stream import BUFFERS, READERS, Chunk

NEIGHBOUR_BYTES = 1 << 20
"""Chunks of a file that are no further apart, such as matrices with a bias between them, are read
in one request."""

Piece = tuple[Path, int, int]
"""A file, an offset and a number of bytes."""


@dataclass(frozen=True)
class Plan:
    """What a pass of ours reads.

    Attributes:
        pieces: the same bytes in large requests.
        bytes_model: of all matrices that a pass multiplies by.
        bytes_pinned: of those that are in memory.
        bytes_ahead: what is read for a pass that does not come, after the last one of a run.
    """

    pieces: list[Piece]
    bytes_model: int
    bytes_pinned: int
    bytes_ahead: int


def plan(setting: Setting) -> Plan:
    """Open the engine in this process too, as the worker does, and look at what is pinned."""
    engine = open_engine(OURS, setting.prepared, setting.threads, setting.memory)
    engine.reset(len(setting.prompt) + setting.new_tokens)
    stream = engine._bloom.model.stream
    streamed = [chunk for i, chunk in enumerate(stream.chunks) if i not in stream._pinned]
    ahead = sum(chunk.nbytes for chunk in streamed[:BUFFERS])
    return Plan(large_pieces(streamed), stream.nbytes, stream.bytes_pinned, ahead)


def large_pieces(chunks: Sequence[Chunk]) -> list[Piece]:
    """Join chunks that are neighbours in a file, and cut what comes out into large requests."""
    stretches: list[Piece] = []
    for chunk in chunks:
        path, begin, end = chunk.path, chunk.offset, chunk.offset + chunk.nbytes
        if stretches and stretches[-1][0] == path and begin - stretches[-1][2] < NEIGHBOUR_BYTES:
            begin = stretches.pop()[1]
        stretches.append((path, begin, end))
    return [
        (path, offset, min(CHUNK_BYTES, end - offset))
        for path, begin, end in stretches
        for offset in range(begin, end, CHUNK_BYTES)
    ]


class RawReads:
    """Reads pieces and does nothing with them. Its buffers stay, as the stream's do."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.nbytes = sum(nbytes for _, _, nbytes in pieces)
        self._pieces = pieces
        self._files = DirectFiles()
        self._readers = ThreadPoolExecutor(READERS)
        self._buffers: SimpleQueue[memoryview] = SimpleQueue()
        for _ in range(READERS):
            self._buffers.put(page_buffer(CHUNK_BYTES))

    def seconds(self, rounds: int) -> float:
        """Seconds to read everything so many times."""
        begin = time.perf_counter()
        for _ in self._readers.map(self._read, [*self._pieces] * rounds):
            pass
        return time.perf_counter() - begin

    def _read(self, piece: Piece) -> None:
        buffer = self._buffers.get()
        self._files.read(*piece, buffer)
        self._buffers.put(buffer)

    def close(self) -> None:
        """End the threads, close the files."""
        self._readers.shutdown()
        self._files.close()


def disk_pairs(setting: Setting) -> dict[str, Any]:
    """Time all pairs: a run of passes of ours, and as many rounds of raw reads.

    A run begins with nothing read ahead, and its passes follow each other without a pause: a
    pause would let our readers fill their buffers in time that nobody counts.

    Returns:
        `pairs`, with bytes and seconds of both, and the sizes of `Plan`.
    """
    planned = plan(setting)
    passes = setting.new_tokens
    streamed = planned.bytes_model - planned.bytes_pinned
    pairs = []
    with (
        Worker(OURS, setting.prepared, setting.threads, memory=setting.memory) as worker,
        closing(RawReads(planned.pieces)) as raw,
    ):

        def run_ours() -> dict[str, Any]:
            before = worker.settled_bytes_read()
            seconds = sum(worker.run(setting.prompt, passes).pass_seconds)
            counted = worker.settled_bytes_read() - before
            return {"seconds": seconds, "rate": streamed * passes / seconds, "counted": counted}

        def run_raw() -> dict[str, Any]:
            seconds = raw.seconds(passes)
            return {"seconds": seconds, "rate": raw.nbytes * passes / seconds}

        sides = {"ours": run_ours, "raw": run_raw}
        for run in sides.values():
            run()  # untimed: pins weights, makes buffers
        for number in range(setting.pairs):
            pair = {}
            for side in sides if number % 2 == 0 else reversed(sides):
                if setting.cold:
                    drop_page_cache()
                pair[side] = sides[side]()
            pairs.append(pair)
            ours, other = pair["ours"]["rate"], pair["raw"]["rate"]
            print(
                f"pair {number + 1} of {setting.pairs}: ours {ours / 1e9:.2f} GB/s, "
                f"raw reads {other / 1e9:.2f} GB/s, ratio {ours / other:.3f}",
                file=sys.stderr,
            )
    return {
        "pairs": pairs,
        "passes": passes,
        "raw_bytes_per_pass": raw.nbytes,
        "bytes_model": planned.bytes_model,
        "bytes_pinned": planned.bytes_pinned,
        "bytes_ahead": planned.bytes_ahead,
    }


def disk_table(result: dict[str, Any]) -> str:
    """A table for people: rates, their ratio, and whether the kernel's account agrees."""
    pairs, passes = result["pairs"], result["passes"]
    ours, raw = ([pair[side]["rate"] for pair in pairs] for side in ("ours", "raw"))
    ratios = [a / b for a, b in zip(ours, raw, strict=True)]
    counted = statistics.median(
        (pair["ours"]["counted"] - result["bytes_ahead"]) / passes for pair in pairs
    )
    streamed = result["bytes_model"] - result["bytes_pinned"]
    lines = [
        ("", "median", "least-most"),
        ("ours, GB/s", *_spread([rate / 1e9 for rate in ours])),
        ("raw reads, GB/s", *_spread([rate / 1e9 for rate in raw])),
        ("ratio within a pair", *_spread(ratios)),
    ]
    return (
        f"{markdown(lines)}\n\n"
        f"a pass reads, by the kernel's account: {counted / 1e9:.4f} GB; model less pinned: "
        f"{result['bytes_model'] / 1e9:.4f} - {result['bytes_pinned'] / 1e9:.4f} = "
        f"{streamed / 1e9:.4f} GB, {counted / streamed - 1:+.2%}\n"
        f"(not counted: {result['bytes_ahead'] / 1e9:.4f} GB read ahead at the end of a run of "
        f"{passes} passes)"
    )


def _spread(values: Sequence[float]) -> tuple[str, str]:
    return f"{statistics.median(values):.2f}", f"{min(values):.2f}-{max(values):.2f}"
