"""The stream of chunks when reads fail, and when it is closed: errors in their turn, no hang."""

import pytest
from support.streams import COUNT, EVERYTHING, Streamed, in_thread
from support.threads import thread_names

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.stream import BUFFERS, READERS, Chunk

pytestmark = pytest.mark.usefixtures("past_the_page_cache")

ERRORS = [NumpyBloomError("disk"), OSError(5, "Input/output error"), MemoryError()]


def second_row(streamed: Streamed) -> Chunk:
    """A part of the first chunk."""
    first = streamed.chunks[0]
    return Chunk(first.path, first.offset + 600, 600)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("memory", [0, 40_000])
def test_error_at_any_read(streamed: Streamed, memory: int, error: Exception) -> None:
    """The caller gets it in its turn, once; when the fault is gone, so is the error."""
    streamed.stream.pin(memory)
    streamed.stream.fill()
    for wrong in sorted(set(range(COUNT)) - streamed.pinned()):
        read_before = streamed.stream.bytes_read
        streamed.stream.pin(EVERYTHING)  # so that the next one forgets what was read ahead
        streamed.source.faults = dict.fromkeys(range(wrong, min(wrong + 3, COUNT)), error)
        streamed.stream.pin(memory)
        streamed.check_pass(range(wrong))
        with pytest.raises(type(error)) as raised:
            streamed.stream.get(wrong)
        assert raised.value is error
        assert raised.value.__traceback__ is not None
        streamed.source.faults.clear()
        streamed.check_pass(range(wrong, COUNT))
        handed_out = streamed.stream.bytes_read - read_before
        assert handed_out == streamed.stream.nbytes - streamed.stream.bytes_pinned
    streamed.check_pass()


def test_error_that_stays(streamed: Streamed) -> None:
    """Many attempts, more than there are readers or buffers."""
    streamed.source.faults[7] = NumpyBloomError("disk")
    for _ in range(3 * BUFFERS):
        streamed.check_pass(range(7))
        with pytest.raises(NumpyBloomError, match="disk"):
            streamed.stream.get(7)
    streamed.source.faults.clear()
    streamed.check_pass()


def test_errors_ahead_are_forgotten(streamed: Streamed) -> None:
    """Several reads fail at once; when the first has been told, the others are tried again."""
    faults, source = dict.fromkeys(range(READERS), NumpyBloomError("disk")), streamed.source
    source.faults = dict(faults)
    source.flowing.clear()
    thread, told = in_thread(lambda: streamed.stream.get(0))
    source.wait_for(lambda begun: len(begun) == READERS)
    source.flowing.set()
    thread.join()
    assert told == [faults[0]]
    source.faults.clear()
    streamed.check_pass(range(1, COUNT))


def test_error_while_filling(streamed: Streamed) -> None:
    streamed.source.faults[2] = NumpyBloomError("disk")
    for _ in range(2 * BUFFERS):
        with pytest.raises(NumpyBloomError, match="disk"):
            streamed.stream.fill()
    streamed.source.faults.clear()
    assert streamed.stream.fill() > 0
    streamed.check_pass()


def test_error_while_pinning(streamed: Streamed) -> None:
    """What was pinned stays pinned."""
    stream = streamed.stream
    stream.pin(30_000)
    pinned, nbytes = streamed.pinned(), stream.bytes_pinned
    for wrong in set(range(COUNT)) - pinned:
        streamed.source.faults = {wrong: NumpyBloomError("disk")}
        with pytest.raises(NumpyBloomError, match="disk"):
            stream.pin(EVERYTHING)
        streamed.source.faults.clear()
        assert stream.bytes_pinned == nbytes
        streamed.check_pass()
    assert streamed.pinned() == pinned
    stream.pin(EVERYTHING)
    assert stream.bytes_pinned == stream.nbytes


def test_error_in_rows(streamed: Streamed) -> None:
    streamed.source.faults[-1] = NumpyBloomError("disk")
    row = second_row(streamed)
    with pytest.raises(NumpyBloomError, match="disk"):
        streamed.stream.read(row, None)
    assert streamed.stream.bytes_read == 0


# --- the end --------------------------------------------------------------------------------------


def test_close_in_the_middle_of_reads(streamed: Streamed) -> None:
    """Who waits for a chunk is told at once; close itself waits for the readers."""
    before = thread_names()  # models of other tests may be open, with readers of their own
    streamed.source.flowing.clear()
    waiting, told = in_thread(lambda: streamed.stream.get(0))
    streamed.source.wait_for(lambda begun: len(begun) == READERS)
    closing_, _ = in_thread(streamed.stream.close)
    waiting.join()
    assert isinstance(told[0], NumpyBloomError)
    assert "closed" in str(told[0])
    assert closing_.is_alive()
    streamed.source.flowing.set()
    closing_.join()
    assert thread_names() == before


@pytest.mark.parametrize("memory", [0, 40_000, EVERYTHING])
def test_closed(streamed: Streamed, memory: int) -> None:
    """A closed stream neither hangs, nor starts threads, nor opens files."""
    streamed.stream.pin(memory)
    streamed.check_pass()
    streamed.stream.close()
    streamed.stream.close()
    streamed.source.close()
    row = second_row(streamed)
    for call in (
        lambda: streamed.stream.get(0),
        lambda: streamed.stream.read(row, None),
        lambda: streamed.stream.read(row, 0),
        lambda: streamed.stream.pin(EVERYTHING),
        streamed.stream.fill,
    ):
        with pytest.raises(NumpyBloomError, match="closed"):
            call()
    streamed.stream.release()


def test_close_by_a_reader(streamed: Streamed) -> None:
    """As the garbage collector may do, which runs in whatever thread it is due."""
    closed: list[None] = []
    streamed.source.on_read = lambda: closed.append(streamed.stream.close())
    with pytest.raises(NumpyBloomError, match="closed"):
        streamed.stream.get(0)
    streamed.stream.close()  # waits for the readers, which this time it can
    assert closed


def test_close_before_anything(streamed: Streamed) -> None:
    streamed.stream.close()
    with pytest.raises(NumpyBloomError, match="closed"):
        streamed.stream.get(0)
