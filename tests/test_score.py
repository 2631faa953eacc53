"""Log-probabilities of a text: what its logits say, at every setting of the dial, and within it."""

import random
import re
import tracemalloc
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import VOCAB_SIZE, Checkpoint
from support.conversions import converted
from support.dials import EVERYTHING, model_folder
from support.scores import IDS, TOLERANCE, Doubles, from_logits, least_memory

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model import forward
from numpy_bloom.running.memory import Needs
from numpy_bloom.weights.linear import Multiply

pytestmark = pytest.mark.usefixtures("many_pieces")


# --- one text -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tokens", [2, 3, 70])
def test_scores_are_the_log_softmax_of_the_logits(tmp_path: Path, dtype: str, tokens: int) -> None:
    with numpy_bloom.load(model_folder(tmp_path, dtype), threads=2) as model:
        scores = model.score(IDS[:tokens])
        assert (scores.shape, scores.dtype) == ((tokens - 1,), np.float32)
        expected = from_logits(model, IDS[:tokens])
    assert np.abs(scores - expected).max() < TOLERANCE
    assert expected.min() < -3  # says something


def test_texts_are_taken_as_well(chunked_model: Bloom) -> None:
    ids = chunked_model.encode("Todos los")
    assert np.array_equal(chunked_model("Todos los"), chunked_model(ids))
    assert np.array_equal(chunked_model.score("Todos los"), chunked_model.score(ids))


def test_every_token_of_the_vocabulary_as_target(chunked_model: Bloom) -> None:
    """Whichever tile its logit is in; their probabilities add up to 1."""
    total = 0.0
    for target in range(VOCAB_SIZE):
        (score,) = chunked_model.score([7, target])
        total += np.exp(np.float64(score))
    assert total == pytest.approx(1, abs=1e-5)


def test_large_logits(tmp_path: Path) -> None:
    """Of which exp would overflow even in float64, and differences that it would round to 0."""
    checkpoint = Checkpoint(heads=4, hidden=32, lm_head="different", seed=7)
    checkpoint.tensors["lm_head.weight"] *= 1000
    with numpy_bloom.load(converted(checkpoint, tmp_path), threads=1) as model:
        assert np.abs(model(IDS)).max() > 3000
        scores, expected = model.score(IDS), from_logits(model, IDS)
    assert expected.min() < -3000
    assert np.abs(scores - expected).max() < 1000 * TOLERANCE


def test_one_token_has_nothing_to_score(chunked_model: Bloom) -> None:
    scores = chunked_model.score([3])
    assert (scores.shape, scores.dtype) == ((0,), np.float32)


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([], "give at least one token"),
        ([[1, 2]], "must be a 1-D array"),
        ([1.5, 2.0], "must be integers"),
        ([1, VOCAB_SIZE], f"token id {VOCAB_SIZE} is out of range"),
        ([-1, 2], "token id -1 is out of range"),
    ],
)
def test_bad_token_ids(chunked_model: Bloom, ids: Any, told: str) -> None:
    with pytest.raises(NumpyBloomError, match=told):
        chunked_model.score(ids)


def test_packed_sequences_are_scored_apart(chunked_model: Bloom) -> None:
    """Each by its own past; only the last tokens may be asked for."""
    parts = [IDS[:40], IDS[40:42], IDS[5:70]]
    counts = [39, 1, 7]
    caches = chunked_model.model.prepare(Needs.of_one_pass([39, 1, 64], target_rows=sum(counts)))
    scores = chunked_model.model.score(
        [ids[:-1] for ids in parts],
        caches,
        [ids[-count:] for ids, count in zip(parts, counts, strict=True)],
    )
    expected = [
        from_logits(chunked_model, ids)[-count:] for ids, count in zip(parts, counts, strict=True)
    ]
    assert np.abs(scores - np.concatenate(expected)).max() < TOLERANCE


def test_caches_for_one_pass_keep_nothing(chunked_model: Bloom) -> None:
    """So the same ones serve pass after pass, and every pass begins at position 0."""
    caches = chunked_model.model.prepare(Needs.of_one_pass([30], target_rows=30))
    twice = [chunked_model.model.score([IDS[:30]], caches, [IDS[1:31]]).tobytes() for _ in range(2)]
    assert twice == [chunked_model.score(IDS[:31]).tobytes()] * 2


# --- the same bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_bits_at_every_setting(tmp_path: Path, dtype: str) -> None:
    folder = model_folder(tmp_path, dtype)
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=1) as model:
        expected = model.score(IDS).tobytes()
    pinned = set()
    for threads in (1, 2, 3):
        least, nbytes = least_memory(folder, threads, [len(IDS) - 1])
        for share in (0, 0.3, 0.7, 1):
            memory = least + int(share * nbytes)
            with numpy_bloom.load(folder, memory=memory, threads=threads) as model:
                assert model.score(IDS).tobytes() == expected
                pinned.add(model.model.stream.bytes_pinned / nbytes)
    assert min(pinned) == 0
    assert max(pinned) == 1


def test_the_order_in_which_tiles_are_done_does_not_matter(
    chunked_model: Bloom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, even: the last bits of the result would seldom show it."""
    real, orders, sums = forward.for_each_tile, [], []

    def shuffled(x: Any, weight: Any, work: Any) -> None:
        done: list[tuple[slice, Any]] = []

        def keep(rows: slice, multiply: Multiply) -> None:
            part = np.empty((len(x), rows.stop - rows.start), dtype=np.float32)
            multiply(part)
            done.append((rows, part))

        real(x, weight, keep)
        random.shuffle(done)
        orders.append([rows.start for rows, _ in done])
        for rows, part in done:
            work(rows, lambda out, part=part: np.copyto(out, part))

    def recording(function: Any, parts: Iterator[Doubles]) -> Any:
        sums.append([part.tobytes() for part in parts])
        return reduce(function, [np.frombuffer(part) for part in sums[-1]])

    monkeypatch.setattr(forward, "reduce", recording)
    expected = chunked_model.score(IDS).tobytes()
    monkeypatch.setattr(forward, "for_each_tile", shuffled)
    random.seed(1)
    assert {chunked_model.score(IDS).tobytes() for _ in range(5)} == {expected}
    assert len({tuple(order) for order in orders}) == 5
    assert sums == [sums[0]] * 6


# --- memory ---------------------------------------------------------------------------------------

OBJECTS = 1_000_000
"""Bytes of Python: threads, jobs, and 1,250 tiles of the head, with a number each at least."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a large vocabulary and many blocks: logits and keys would show."""
    checkpoint = Checkpoint(
        heads=4, hidden=32, blocks=24, vocab=20_000, dtype="bfloat16", lm_head="different"
    )
    return converted(checkpoint, tmp_path_factory.mktemp("wide"))


@pytest.mark.parametrize(
    ("lengths", "targets", "threads"),
    [([1], [1], 2), ([300], [300], 1), ([300], [2], 2), ([100, 3, 197], [100, 3, 197], 2)],
)
def test_scoring_takes_no_more_than_is_estimated(
    wide: Path, lengths: list[int], targets: list[int], threads: int
) -> None:
    with numpy_bloom.load(wide, threads=threads) as model:
        ids = [np.arange(length) for length in lengths]
        model.score([0, 1])  # pins weights, and cuts them into tiles
        tracemalloc.start()
        caches = model.model.prepare(Needs.of_one_pass(lengths, target_rows=sum(targets)))
        model.model.score(ids, caches, [np.arange(count) for count in targets])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        config = model.config
        estimate = model.model.working_bytes(sum(lengths), max(lengths), target_rows=sum(targets))
    assert peak <= estimate + OBJECTS
    if sum(targets) == 300:
        assert estimate < 4 * config.vocab_size * 300 / 2  # half of the logits
    if sum(lengths) == 300:
        keys = 8 * config.num_hidden_layers * config.hidden_size * 300
        assert peak < estimate + OBJECTS < estimate + keys


@pytest.mark.parametrize("threads", [1, 2])
def test_too_small_a_dial(chunked_folder: Path, threads: int) -> None:
    """The error comes before anything is read, and the least that it names is enough."""
    least, _ = least_memory(chunked_folder, threads, [len(IDS) - 1])
    with numpy_bloom.load(chunked_folder, memory=least - 1, threads=threads) as model:
        with pytest.raises(NumpyBloomError, match="at least") as error:
            model.score(IDS)
        assert (model.model.stream.bytes_read, model.model.stream.bytes_pinned) == (0, 0)
    with numpy_bloom.load(chunked_folder, memory=least, threads=threads) as model:
        expected = model.score(IDS).tobytes()
    named = re.search(r"at least ([\d,.]+ ?[KMG]?B)", str(error.value))
    assert named is not None
    memory = named[1].replace(",", "")
    with numpy_bloom.load(chunked_folder, memory=memory, threads=threads) as model:
        assert model.score(IDS).tobytes() == expected


def test_memory_is_free_again_when_a_text_is_scored(chunked_folder: Path) -> None:
    least, _ = least_memory(chunked_folder, 1, [len(IDS) - 1])
    with numpy_bloom.load(chunked_folder, memory=least, threads=1) as model:
        for _ in range(3):
            model.score(IDS)
            model.score(IDS[:5])
            assert model.model.stream.bytes_pinned > 0
            model.score(IDS)
            assert model.model.stream.bytes_pinned == 0
