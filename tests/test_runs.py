"""Several runs of one model: they neither disturb each other nor leave anything behind."""

import gc
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.dials import (
    EVERYTHING,
    NEW,
    PROMPT,
    answer,
    least_memory,
    model_folder,
)
from support.interruptions import Interrupt
from support.threads import open_files, thread_names
from threadpoolctl import threadpool_info, threadpool_limits

import numpy_bloom
from numpy_bloom.generation.continuation import Continuation
from numpy_bloom.generation.sampling import SamplingOptions, draw, next_token_distribution
from numpy_bloom.model.cache import Cache, KVCache
from numpy_bloom.running.memory import LIVE_LOGITS, Needs
from numpy_bloom.weights import team
from numpy_bloom.weights.team import one_blas_thread

pytestmark = pytest.mark.usefixtures("many_pieces")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model_folder(tmp_path)


def test_threads_that_share_a_model_wait_for_each_other(folder: Path) -> None:
    blas = [pool["num_threads"] for pool in threadpool_info()]
    memory = least_memory(folder, 2) + 60_000  # for two runs, and streamed
    with numpy_bloom.load(folder, memory=memory, threads=2) as model:
        expected = [token.id for token in model.generate(PROMPT, max_new_tokens=NEW)]
        wrong: list[object] = []

        def generate() -> None:
            for _ in range(10):
                found = [token.id for token in model.generate(PROMPT, max_new_tokens=NEW)]
                if found != expected:
                    wrong.append(found)

        callers = [threading.Thread(target=generate) for _ in range(2)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert wrong == []
    assert [pool["num_threads"] for pool in threadpool_info()] == blas


class ReadSlowly(weakref.WeakKeyDictionary[Cache, Any]):
    """Somebody else has the time to change it while it is read."""

    begin: Callable[[], object]

    def keys(self) -> Iterator[Cache]:
        keys = super().keys()
        yield next(keys)
        other = threading.Thread(target=self.begin)
        other.start()
        other.join(0.1)  # waits for this reader, or it is done
        yield from keys


def test_a_run_begins_while_others_ask_for_room(folder: Path) -> None:
    with numpy_bloom.load(folder, threads=1) as model:
        room, needs = model.model, Needs([5], pass_tokens=5, logit_rows=1)
        held = room.prepare(needs)
        begun: list[object] = []
        room._runs = ReadSlowly(room._runs)
        room._runs.begin = lambda: begun.append(room._begin(caches, 0, None))
        caches = [KVCache(model.config, 5)]
        assert room.has_room(needs)
        assert held


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.mark.parametrize("first_out", [0, 1])
def test_blas_has_one_thread_until_the_last_model_is_done(first_out: int) -> None:
    """Two models compute in two threads; the limit is the whole process's."""
    before = blas_threads()
    with ExitStack() as stack:
        workers = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2)]
        models = [stack.enter_context(numpy_bloom.load()) for _ in range(2)]
        guards = [model.model.computing() for model in models]
        for worker, guard in zip(workers, guards, strict=True):
            worker.submit(guard.__enter__).result()
            assert set(blas_threads()) == {1}
        workers[first_out].submit(guards[first_out].__exit__, None, None, None).result()
        assert set(blas_threads()) == {1}
        last = 1 - first_out
        workers[last].submit(guards[last].__exit__, None, None, None).result()
        assert blas_threads() == before


def test_the_limit_of_blas_is_no_threads_own() -> None:
    """One that is alive may have set it, and another take it back or set it anew."""
    before = blas_threads()
    with ExitStack() as stack:
        workers = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2)]
        guard = one_blas_thread()
        workers[0].submit(guard.__enter__).result()
        assert set(blas_threads()) == {1}
        workers[1].submit(guard.__exit__, None, None, None).result()
        assert blas_threads() == before
        with threadpool_limits(2, "blas"):
            guard = one_blas_thread()
            workers[0].submit(guard.__enter__).result()
            assert set(blas_threads()) == {1}
            workers[0].submit(guard.__exit__, None, None, None).result()
    assert blas_threads() == before


def test_the_limit_of_blas_after_ctrl_c() -> None:
    """Wherever it came, whoever sets the limit next takes it back."""
    files = [Path(team.__file__)]
    with threadpool_limits(2, "blas"):
        with Interrupt(0, files) as undisturbed, one_blas_thread():
            pass
        assert undisturbed.lines > 10
        for after in range(1, undisturbed.lines + 1):
            with pytest.raises(KeyboardInterrupt), Interrupt(after, files), one_blas_thread():
                pass
            gc.collect()  # what Ctrl-C was caught with
            with one_blas_thread():
                assert set(blas_threads()) == {1}
            assert set(blas_threads()) == {2}


@pytest.mark.parametrize("count", [0, 2])
def test_ctrl_c_while_a_token_is_chosen(
    folder: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """The pass is done by then, and is done again."""
    with numpy_bloom.load(folder, threads=1) as model:
        expected = [token.id for token in model.generate(PROMPT, max_new_tokens=NEW)]
        generation = model.generate(PROMPT, max_new_tokens=NEW)
        for _ in range(count):
            next(generation)

        def interrupted(_self: object, _logits: object) -> list[tuple[int, float]]:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Continuation, "_choose", interrupted)
            with pytest.raises(KeyboardInterrupt):
                next(generation)
        list(generation)
        assert generation.token_ids == expected
        assert generation.stats.passes == NEW


def test_a_run_that_was_made_early_keeps_its_place(folder: Path) -> None:
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=1) as model:
        early = model.generate(PROMPT, max_new_tokens=NEW)
        needed = model.model.memory_for_all - model.model.stream.nbytes
        model.generate(PROMPT[:2], max_new_tokens=1)
        both = model.model.memory_for_all - model.model.stream.nbytes
        assert both > needed  # activations of the early one and caches of both
        del early
        model.generate(PROMPT[:2], max_new_tokens=1)
        assert model.model.memory_for_all - model.model.stream.nbytes < needed


def test_a_run_of_several_sequences(folder: Path) -> None:
    """It has a cache of its own size for each, and is over when nobody holds any of them."""

    def needed(model: numpy_bloom.Bloom) -> int:
        model.generate(PROMPT[:2], max_new_tokens=1)
        return model.model.memory_for_all - model.model.stream.nbytes

    with numpy_bloom.load(folder, memory=EVERYTHING, threads=1) as model:
        alone, config = needed(model), model.config
        caches = model.model.prepare(Needs([60, 3, 7], pass_tokens=70, logit_rows=3))
        assert [cache.capacity for cache in caches] == [60, 3, 7]
        activations = model.model.working_bytes(70, 60, logit_rows=3)
        # Two tokens of the other run have their place as well, but no activations at that time.
        together = model.model.store.vector_bytes + KVCache.nbytes(config, 72) + activations
        assert needed(model) == together
        sequences = [np.array(PROMPT[:length]) for length in (40, 3, 7)]
        assert model.model.run(sequences, caches).shape == (3, config.vocab_size)
        del caches[1:]
        assert needed(model) == together - KVCache.nbytes(config, 10)
        caches.clear()
        assert needed(model) == alone


def test_a_forgotten_model_closes_itself(folder: Path) -> None:
    before = thread_names()
    for memory in (least_memory(folder, 2), EVERYTHING):
        model = numpy_bloom.load(folder, memory=memory, threads=2)
        answer(model)
        assert thread_names() != before
        del model
        gc.collect()
        assert thread_names() == before
        assert open_files(folder) == []


def test_a_generation_keeps_its_model(folder: Path) -> None:
    generation = numpy_bloom.load(folder).generate(PROMPT, max_new_tokens=NEW)
    gc.collect()
    assert len(list(generation)) == NEW


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 50, 400])
@pytest.mark.parametrize("all_positions", [False, True])
def test_a_pass_takes_no_more_than_is_estimated(
    folder: Path, tokens: int, threads: int, all_positions: bool
) -> None:
    with numpy_bloom.load(folder, threads=threads) as model:
        rows = tokens if all_positions else 1
        caches = model.model.prepare(Needs([tokens], pass_tokens=tokens, logit_rows=rows))
        ids = np.arange(tokens) % model.config.vocab_size
        tracemalloc.start()
        model.model.run([ids], caches, last=[rows])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        objects = 100_000  # of Python: threads, tiles, jobs
        assert peak <= model.model.working_bytes(tokens, tokens, logit_rows=rows) + objects


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("lengths", [[1], [400], [1, 200, 3, 196]])
def test_a_pass_without_caches_takes_no_more_than_is_estimated(
    folder: Path, lengths: list[int], threads: int
) -> None:
    """Keys and values of one block are among the activations."""
    with numpy_bloom.load(folder, threads=threads) as model:
        tokens = sum(lengths)
        caches = model.model.prepare(Needs.of_one_pass(lengths, logit_rows=tokens))
        sequences = [np.arange(length) % model.config.vocab_size for length in lengths]
        tracemalloc.start()
        model.model.run(sequences, caches, last=lengths)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        estimate = model.model.working_bytes(tokens, max(lengths), logit_rows=tokens)
        assert peak <= estimate + 100_000  # objects of Python


def test_choosing_a_token_takes_no_more_than_is_estimated() -> None:
    logits = np.random.default_rng(0).standard_normal(250_880, dtype=np.float32)
    options = SamplingOptions(0.7, 1000, 0.9, 0.01, repetition_penalty=1.3)
    tracemalloc.start()
    draw(next_token_distribution(logits, [1, 2], options), np.random.default_rng(0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= LIVE_LOGITS * logits.nbytes
