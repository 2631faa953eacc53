"""What disk, memory and cores can do at best: the limits to hold a model's speed against."""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import repeat

import numpy as np

from numpy_bloom.weights.files import DirectFiles, page_buffer
from numpy_bloom.weights.stream import READERS, Chunk
from numpy_bloom.weights.team import Team

MOST_READ_BYTES = 1 << 30
MEMORY_BYTES = 1 << 27
"""Read in each round: larger than the caches of most machines."""
PRODUCTS = 32
REPEATS = 5


def disk_rate(chunks: Sequence[Chunk]) -> float:
    """Bytes per second at which the chunks can be read one after the other, up to 1 GiB of them.

    Large reads past the page cache, as many at once as the stream has reader threads, and nothing
    done with the bytes; the median of a few rounds, since disks have moods.

    Raises:
        NumpyBloomError: a file cannot be read.
    """
    largest = max(chunk.nbytes for chunk in chunks)
    chunks = chunks[: max(1, MOST_READ_BYTES // largest)]
    buffers = [page_buffer(largest) for _ in range(READERS)]

    def read(first: int, files: DirectFiles) -> None:
        for chunk in chunks[first::READERS]:
            files.read(chunk.path, chunk.offset, chunk.nbytes, buffers[first])

    seconds = []
    with closing(DirectFiles()) as files, ThreadPoolExecutor(READERS) as readers:
        for _ in range(REPEATS):
            begin = time.perf_counter()
            list(readers.map(read, range(READERS), repeat(files)))
            seconds.append(time.perf_counter() - begin)
    return sum(chunk.nbytes for chunk in chunks) / statistics.median(seconds)


def memory_rate(team: Team, most: int) -> float:
    """Bytes per second that the team's threads can read from memory: dot products of long vectors.

    BLAS must be held to one thread.

    Args:
        most: bytes to use; never more than `MEMORY_BYTES`.
    """
    vectors = np.ones((16, min(MEMORY_BYTES, most) // 64), dtype=np.float32)
    return vectors.nbytes / _fastest(team, lambda i: np.dot(vectors[i], vectors[i]), 16)


def arithmetic_rate(team: Team) -> float:
    """Float32 operations per second in a product of two matrices that fit the caches.

    BLAS must be held to one thread.
    """
    size = 512
    a = np.ones((size, size), dtype=np.float32)
    return 2 * size**3 * PRODUCTS / _fastest(team, lambda _: a @ a, PRODUCTS)


def _fastest(team: Team, work: Callable[[int], object], parts: int) -> float:
    """Least seconds of some runs of `work` on all parts."""
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        team.run(work, iter(range(parts)))
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
