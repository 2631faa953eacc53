"""A share on a worker that runs several tasks at once."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clusters  # noqa: F401  (skips where Dask is not installed)
import numpy as np
import pytest
from support.dials import in_many_pieces

from numpy_bloom.cluster.share import Share, Travelling
from numpy_bloom.model.config import read_config
from numpy_bloom.running.memory import Needs
from numpy_bloom.running.model import Leg

IDS = np.array([5, 6, 7, 8], dtype=np.int64)
LEG = Leg([len(IDS)], embeds=True, rows=np.array([3]), unembeds=True)
RUN = Needs([8], pass_tokens=len(IDS), logit_rows=1)


class WatchedLock:
    """A lock that tells when one thread, of a given name, has to wait for it."""

    waits = threading.Event()
    real = threading.Lock

    def __init__(self) -> None:
        self._lock = self.real()
        self.release, self.locked = self._lock.release, self._lock.locked

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._lock.acquire(blocking=False):
            return True
        if threading.current_thread().name == "second":
            self.waits.set()
        return self._lock.acquire(blocking, timeout)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@pytest.fixture
def streamed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Share]:
    """All blocks, half of which are read from disk in each pass."""
    in_many_pieces(monkeypatch)
    options = {"threads": 1, "blocks": range(6), "embeds": True, "unembeds": True}
    config = read_config(folder)
    with monkeypatch.context() as watched:
        watched.setattr(threading, "Lock", WatchedLock)
        share = Share("streamed", folder, config, {"memory": 1 << 40, **options})
    share.prepare([0], RUN)
    share.turn(share._model.memory_for_all - share._model.weight_bytes // 2)
    yield share
    share._model.close()


def test_a_leg_that_was_given_up_runs_still(streamed: Share) -> None:
    """Dask cannot stop it. The same leg, done again, begins where it is told to."""

    def leg() -> Travelling:
        return streamed.run(Travelling(IDS), LEG, [0], [0])

    expected = leg()
    assert 0 < expected.bytes_read < streamed._model.weight_bytes
    again: list[Travelling] = []
    second = threading.Thread(target=lambda: again.append(leg()), name="second")

    def at_first_chunk(*_: Any) -> None:
        streamed._model.watch(lambda *_: None)
        second.start()
        assert WatchedLock.waits.wait(30)

    streamed._model.watch(at_first_chunk)
    old = leg()
    second.join()
    for travelling in (old, *again):
        assert np.array_equal(travelling.x, expected.x)
        assert travelling.bytes_read == expected.bytes_read
    assert len(again) == 1
