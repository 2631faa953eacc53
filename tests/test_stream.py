"""The stream of chunks: the right bytes in any order, read ahead, counted and pinned."""

from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from support.streams import COUNT, EVERYTHING, Streamed, in_thread, opened

from numpy_bloom.weights.stream import BUFFERS, READERS, Chunk
from numpy_bloom.weights.team import Team

pytestmark = pytest.mark.usefixtures("past_the_page_cache")


# --- order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, 20_000, 80_000, EVERYTHING])
def test_passes(streamed: Streamed, memory: int) -> None:
    streamed.stream.pin(memory)
    for _ in range(4):
        streamed.check_pass()
    assert len(streamed.source.buffers) <= BUFFERS + COUNT


@pytest.mark.parametrize("count", [1, 2, 3, BUFFERS, BUFFERS + 1])
def test_few_chunks(tmp_path: Path, count: int) -> None:
    with opened(tmp_path, count) as streamed:
        for memory in (0, streamed.chunks[0].nbytes, EVERYTHING):
            streamed.stream.pin(memory)
            begun = list(streamed.source.begun)
            for _ in range(5):
                streamed.check_pass()
            for number in range(count):  # in each pass, and for the one that does not come
                assert streamed.source.begun.count(number) - begun.count(number) <= 6


def test_a_chunk_is_read_once_in_a_pass(streamed: Streamed) -> None:
    """In order, and ahead: nothing is read twice or thrown away."""
    for _ in range(3):
        streamed.check_pass()
    begun = streamed.source.begun
    assert 3 * COUNT <= len(begun) <= 3 * COUNT + BUFFERS
    for place, number in enumerate(begun):  # between claim and read a reader may be overtaken
        late = (place - number + READERS) % COUNT
        assert late <= 2 * READERS
    assert all(begun.count(number) in {3, 4} for number in range(COUNT))


@pytest.mark.parametrize("memory", [0, 40_000])
def test_any_order(streamed: Streamed, memory: int) -> None:
    streamed.stream.pin(memory)
    random = np.random.default_rng(memory)
    streamed.check_pass(random.integers(COUNT, size=300).tolist())
    streamed.check_pass([5, 5, 5, 4, 3, 19, 0, 19, 18])
    streamed.check_pass()


def test_skipping_the_end(streamed: Streamed) -> None:
    """Passes without the head, which is last, and some with it."""
    for last in (17, 17, COUNT, 17, 16, COUNT):
        streamed.check_pass(range(last))


def test_the_same_chunk_twice(streamed: Streamed) -> None:
    first, second = streamed.stream.get(3), streamed.stream.get(3)
    assert first == second == streamed.contents[3]
    streamed.stream.release(3)
    streamed.check_pass()


@pytest.mark.parametrize("memory", [0, 40_000])
def test_release_in_any_order(streamed: Streamed, memory: int) -> None:
    """What is not yet released stays as it is, whatever is read meanwhile."""
    streamed.stream.pin(memory)
    random, held = np.random.default_rng(1), dict[int, memoryview]()

    def give_back() -> None:
        number = int(random.choice(list(held)))
        assert held.pop(number) == streamed.contents[number]
        streamed.stream.release(number)

    for _ in range(10):
        for number in range(COUNT):
            while number in held or len(held) == BUFFERS - 1 or (held and random.random() < 0.3):
                give_back()
            held[number] = streamed.stream.get(number)
    while held:
        give_back()
    streamed.check_pass()


def test_release_all(streamed: Streamed) -> None:
    for _ in range(5):
        for number in range(BUFFERS):
            assert streamed.stream.get(number) == streamed.contents[number]
        streamed.stream.release()
    streamed.stream.release()
    streamed.check_pass()


def test_read_ahead_is_bounded(streamed: Streamed) -> None:
    for number in range(BUFFERS):
        streamed.stream.get(number)  # and all buffers are in use
    assert sorted(streamed.source.begun) == list(range(BUFFERS))
    for number in range(BUFFERS, COUNT):
        streamed.stream.release(number - 2)  # not the oldest
        streamed.source.wait_for(lambda begun, number=number: number in begun)
        assert sorted(streamed.source.begun) == list(range(number + 1))
        streamed.stream.get(number)
    assert len(streamed.source.buffers) == BUFFERS


def test_reads_ahead_without_being_asked(streamed: Streamed) -> None:
    streamed.check(0)
    streamed.source.wait_for(lambda begun: sorted(begun) == list(range(BUFFERS + 1)))


def test_what_is_passed_over_makes_room(streamed: Streamed) -> None:
    streamed.stream.fill()
    streamed.check(3)
    streamed.source.wait_for(lambda begun: 3 + BUFFERS in begun)


def test_from_several_threads(streamed: Streamed) -> None:
    """Each thread asks for chunks of its own, in an order that suits none of the others."""

    def work(first: int) -> None:
        streamed.check_pass([*range(first, COUNT, 4)] * 3)

    with closing(Team(4)) as team:
        team.run(work, iter(range(4)))
    # No thread undoes what another waits for: a chunk is read once for each time it is asked for,
    # and at most all buffers are filled in vain after it.
    assert len(streamed.source.begun) <= 3 * COUNT * (1 + BUFFERS)
    streamed.check_pass()


def test_a_read_that_is_no_longer_wanted(streamed: Streamed) -> None:
    """Its buffer is not used again before it is done, nor its content ever."""
    source = streamed.source
    source.flowing.clear()
    thread, result = in_thread(lambda: streamed.stream.get(0))
    source.wait_for(lambda begun: len(begun) == READERS)
    other, other_result = in_thread(lambda: streamed.stream.pin(0))  # forgets all that is read
    other.join()
    source.flowing.set()
    thread.join()
    assert result == [streamed.contents[0]]
    assert other_result == [None]
    streamed.stream.release()
    streamed.check_pass()
    assert len(source.buffers) == BUFFERS


# --- rows and counts ------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, 40_000, EVERYTHING])
def test_rows_out_of_order(streamed: Streamed, memory: int) -> None:
    stream = streamed.stream
    stream.pin(memory)
    pinned = streamed.pinned()
    for number, chunk in enumerate(streamed.chunks):
        nbytes = chunk.nbytes // 3
        for skip in range(0, 3 * nbytes, nbytes):
            piece = Chunk(chunk.path, chunk.offset + skip, nbytes)
            before = stream.bytes_read
            expected = streamed.contents[number][skip : skip + piece.nbytes]
            assert stream.read(piece, number) == expected
            assert stream.bytes_read - before == (0 if number in pinned else piece.nbytes)
            assert stream.read(piece, None) == expected


@pytest.mark.parametrize("memory", [0, 40_000, EVERYTHING])
def test_bytes_read(streamed: Streamed, memory: int) -> None:
    """What was handed out, neither what is read ahead nor what was pinned."""
    stream = streamed.stream
    stream.pin(memory)
    assert stream.bytes_read == 0
    for passes in range(1, 4):
        streamed.check_pass()
        assert stream.bytes_read == passes * (stream.nbytes - stream.bytes_pinned)
    assert stream.nbytes == sum(len(content) for content in streamed.contents)


# --- pinning --------------------------------------------------------------------------------------


def test_pinned_chunks_are_nested_and_counted(streamed: Streamed) -> None:
    """More memory pins what less memory pins and more; less memory gives back."""
    stream, held = streamed.stream, dict[int, set[int]]()
    sizes = [0, 3_000, 9_000, 20_000, 40_000, 60_000, stream.nbytes - 1, stream.nbytes, EVERYTHING]
    for memory in [*sizes, *sizes[::-1], 40_000, 0, EVERYTHING]:
        stream.pin(memory)
        assert stream.bytes_pinned <= memory
        pinned = streamed.pinned()
        assert stream.bytes_pinned == sum(streamed.chunks[number].nbytes for number in pinned)
        assert held.setdefault(memory, pinned) == pinned
        largest = max(chunk.nbytes for chunk in streamed.chunks)
        assert len(pinned) == COUNT or memory - stream.bytes_pinned < largest  # none more fits
    for less, more in pairwise(sizes):
        assert held[less] <= held[more]
    assert held[0] == set()
    assert len(held[stream.nbytes - 1]) == COUNT - 1
    assert len(held[stream.nbytes]) == COUNT


def test_pinned_chunks_are_spread_over_the_pass(streamed: Streamed) -> None:
    streamed.stream.pin(streamed.stream.nbytes // 2)
    pinned = sorted(streamed.pinned())
    assert 8 <= len(pinned) <= 12
    assert max(b - a for a, b in pairwise([-1, *pinned, COUNT])) <= 3


def test_pinning_reads_only_what_is_missing(streamed: Streamed) -> None:
    stream, begun = streamed.stream, streamed.source.begun
    stream.pin(30_000)
    first = list(begun)
    stream.pin(60_000)
    assert len(set(begun)) == len(begun)
    stream.pin(30_000)
    stream.pin(30_000)
    assert sum(streamed.chunks[number].nbytes for number in begun) <= 60_000
    assert set(first) == streamed.pinned()


def test_all_pinned_reads_nothing(streamed: Streamed) -> None:
    streamed.check_pass()  # readers and buffers are there
    streamed.stream.pin(EVERYTHING)
    count = len(streamed.source.begun)
    for _ in range(3):
        streamed.check_pass()
    assert len(streamed.source.begun) == count
    assert streamed.stream.fill() == 0
    streamed.stream.pin(0)
    streamed.check_pass()


def test_fill(streamed: Streamed) -> None:
    stream, source = streamed.stream, streamed.source
    stream.pin(40_000)
    pinned = streamed.pinned()
    for _ in range(2):
        source.begun.clear()
        assert stream.fill() > 0
        expected = [number for number in range(COUNT) if number not in pinned][:BUFFERS]
        assert sorted(source.begun) == expected
        streamed.check(0)
