"""Batches: every prompt says what it says alone, within the dial, whatever happens on the way."""

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.batches import (
    NEW,
    alone,
    ending,
    needed_alone,
    said,
    some_prompts,
    to_the_end,
    watch_passes,
)
from support.dials import EVERYTHING, model_folder

import numpy_bloom
from numpy_bloom.errors import NumpyBloomError, OptionError

pytestmark = pytest.mark.usefixtures("many_chunks")

ROW_BYTES = 64
"""Of an embedding of `model_folder`: 32 bfloat16."""


@pytest.fixture(scope="module")
def three_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More weights, of which several texts can take the place."""
    return model_folder(tmp_path_factory.mktemp("batches"), blocks=3)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("streamed", [True, False])
def test_each_says_what_it_says_alone(chunked_folder: Path, streamed: bool, threads: int) -> None:
    numbers = random.Random(threads)
    reasons: set[str | None] = set()
    for _ in range(3):
        prompts = some_prompts(numbers, numbers.randint(2, 9))
        least, resident = needed_alone(chunked_folder, threads, prompts)
        memory = numbers.randrange(least, resident) if streamed else EVERYTHING
        with numpy_bloom.load(chunked_folder, memory=memory, threads=threads) as model:
            options: dict[str, Any] = {"max_new_tokens": numbers.randint(1, NEW)}
            plain = alone(model, prompts, **options)
            # What some of them say ends them.
            ids = {numbers.choice(one.token_ids) for one in plain[:2]}
            letters = [letter for one in plain[2:] for letter in one.text if letter.isascii()]
            options["stop"] = ["never there", *letters[:1]]
            with ending(model, ids):
                expected = alone(model, prompts, **options)
                generations = model.generate_batch(prompts, **options)
            tokens: list[list[Any]] = [[] for _ in prompts]
            for place in numbers.sample(range(len(prompts)), len(prompts)):
                tokens[place] = list(generations[place])
            assert [said(generation) for generation in generations] == expected
            for taken, one in zip(tokens, expected, strict=True):
                assert [token.id for token in taken] == one.token_ids
                assert "".join(token.text for token in taken) == one.text
        reasons.update(one.finish_reason for one in expected)
    assert reasons == {"length", "eos", "stop"}


def test_probabilities_are_those_of_each_alone(chunked_folder: Path) -> None:
    """But for the order of sums in BLAS, which depends on how many rows a product has."""
    prompts = some_prompts(random.Random(1), 5)
    with numpy_bloom.load(chunked_folder, threads=1) as model:
        for prompt, together in zip(
            prompts, model.generate_batch(prompts, max_new_tokens=NEW), strict=True
        ):
            pairs = zip(model.generate(prompt, max_new_tokens=NEW), together, strict=True)
            assert all(
                one.logprob == pytest.approx(other.logprob, abs=1e-4) for one, other in pairs
            )


@pytest.mark.parametrize(("seed", "threads"), [(7, 1), (None, 3)])
def test_joins_and_leaves_within_the_dial(
    three_blocks: Path, monkeypatch: pytest.MonkeyPatch, seed: int | None, threads: int
) -> None:
    """As many at once as fit, one if need be; and weights that one text leaves in memory stay."""
    prompts = [[number] * 12 for number in range(5, 13)]
    if seed is not None:
        prompts = some_prompts(random.Random(seed), 8)
    least, resident = needed_alone(three_blocks, threads, prompts)
    with numpy_bloom.load(three_blocks, threads=1) as model:
        expected = alone(model, prompts, max_new_tokens=NEW)
    most = []
    for memory in (least, least + 30_000, least + 60_000, resident, EVERYTHING):
        with numpy_bloom.load(three_blocks, memory=memory, threads=threads) as model:
            with monkeypatch.context() as patch:
                passes = watch_passes(patch)
                generations = model.generate_batch(prompts, max_new_tokens=NEW)
                list(generations[-1])
                assert to_the_end(generations) == expected
            assert max(one.nbytes for one in passes) <= memory
            assert all(one.resident for one in passes) or memory < resident
            most.append(max(len(one.fed) for one in passes))
            fed = sum(len(ids) for one in passes for ids in one.fed)
            assert fed == sum(map(len, prompts)) + len(prompts) * (NEW - 1)  # nothing twice
    assert most[-1] == len(prompts)
    if seed is None:
        assert most[0] == most[3] == 1 < most[1] < most[2]


def test_the_longest_text_counts_in_what_a_pass_needs(chunked_folder: Path) -> None:
    """Also if it is in the batch when shorter ones join, that bring as many tokens."""
    prompts = [[5] * 13, [6] * 10, [7] * 10]
    with numpy_bloom.load(chunked_folder, memory=EVERYTHING, threads=2) as model:
        generations = model.generate_batch(prompts, max_new_tokens=100)
        held = max(nbytes for nbytes, _ in model.model._runs.values())
        assert held == model.model.working_bytes(33, 112, logit_rows=3)
        list(generations[0])


def test_one_text_is_no_list_of_prompts(chunked_folder: Path) -> None:
    """Its characters would be."""
    with (
        numpy_bloom.load(chunked_folder) as model,
        pytest.raises(
            OptionError, match="prompts is one text; give a list of them, or use generate"
        ),
    ):
        model.generate_batch("Todos")  # type: ignore[arg-type]


def test_a_long_prompt_joins_others(chunked_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is longer than PASS_TOKENS; two of them never are in one pass."""
    prompts = [[numbers] * 30 for numbers in (5, 6, 7)]
    with numpy_bloom.load(chunked_folder, memory=EVERYTHING, threads=1) as model:
        passes = watch_passes(monkeypatch)
        list(model.generate_batch(prompts, max_new_tokens=3)[2])
    assert [[len(ids) for ids in one.fed] for one in passes] == [
        [30],
        [1, 30],
        [1, 1, 30],
        [1, 1],
        [1],
    ]


def test_prompts_share_passes_up_to_a_limit(
    chunked_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[5] * 10, [6] * 10, [7] * 10, [8] * 10, [9] * 2]
    with numpy_bloom.load(chunked_folder, memory=EVERYTHING, threads=1) as model:
        passes = watch_passes(monkeypatch)
        list(model.generate_batch(prompts, max_new_tokens=2)[0])
    lengths = [[len(ids) for ids in one.fed] for one in passes]
    assert lengths == [[10, 10, 10], [1, 1, 1, 10, 2]]


@pytest.mark.parametrize("threads", [1, 2])
def test_each_pass_reads_each_weight_once(
    chunked_folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    prompts = some_prompts(random.Random(2), 6)
    least, resident = needed_alone(chunked_folder, threads, prompts)
    for memory in (least, (least + resident) // 2, EVERYTHING):
        with numpy_bloom.load(chunked_folder, memory=memory, threads=threads) as model:
            stream = model.model.stream
            generations = model.generate_batch(prompts, max_new_tokens=NEW)
            with monkeypatch.context() as patch:
                passes, pinned = watch_passes(patch), []
                while generations[0].finish_reason is None:
                    next(generations[0])
                    pinned.append(stream.bytes_pinned)
            for one, nbytes in zip(passes, pinned, strict=True):
                rows = {token_id for ids in one.fed for token_id in ids}
                assert one.bytes_read == stream.nbytes - nbytes + len(rows) * ROW_BYTES
            reads = sum(one.bytes_read for one in passes)
            assert generations[0].stats.weight_bytes_read == reads
            assert generations[0].stats.passes == len(passes)


def test_equal_prompts_share_no_cache(
    chunked_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[5, 6, 7]] * 3
    with numpy_bloom.load(chunked_folder, threads=1) as model:
        expected = alone(model, prompts[:1], max_new_tokens=NEW)
        passes = watch_passes(monkeypatch)
        generations = model.generate_batch(prompts, max_new_tokens=NEW)
        list(generations[0])
        assert [said(generation) for generation in generations] == expected * 3
    assert all(len(set(one.caches)) == len(one.fed) == 3 for one in passes)
    assert len({cache for one in passes for cache in one.caches}) == 3


def test_whichever_is_asked_all_go_on(
    chunked_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[5], [6, 7], [8, 9]]
    with numpy_bloom.load(chunked_folder, threads=1) as model:
        expected = alone(model, prompts, max_new_tokens=NEW)
        passes = watch_passes(monkeypatch)
        generations = model.generate_batch(prompts, max_new_tokens=NEW)
        assert passes == []
        for count, place in enumerate([2, 2, 2, 0, 0, 0, 1, 1, 1, 0, 1], start=1):
            next(generations[place])
            assert len(passes) == min(count, 3) + (count > 9)
            assert len({len(generation.token_ids) for generation in generations}) == 1
        for generation in generations:
            list(generation)
            assert generation.stats.passes == NEW
        assert [said(generation) for generation in generations] == expected


def test_threads_that_ask_for_different_texts(
    chunked_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share the passes, and none makes one while there are tokens to take."""
    prompts = [[5, 6, 7], [8, 9], [10]]
    with numpy_bloom.load(chunked_folder, threads=1) as model:
        expected = alone(model, prompts, max_new_tokens=NEW)
        switches = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for _ in range(5):
                with monkeypatch.context() as patch, ThreadPoolExecutor(len(prompts)) as threads:
                    passes = watch_passes(patch)
                    generations = model.generate_batch(prompts, max_new_tokens=NEW)
                    list(threads.map(list, generations))
                assert [said(generation) for generation in generations] == expected
                assert len(passes) == NEW
        finally:
            sys.setswitchinterval(switches)


def test_leaving_one_half_way(chunked_folder: Path) -> None:
    prompts = some_prompts(random.Random(3), 4)
    least, _ = needed_alone(chunked_folder, 1, prompts)
    for memory in (least, EVERYTHING):
        with numpy_bloom.load(chunked_folder, memory=memory, threads=1) as model:
            expected = alone(model, prompts, max_new_tokens=NEW)
            generations = model.generate_batch(prompts, max_new_tokens=NEW)
            next(generations[0])
            next(generations[3])
            del generations[0]
            for generation in generations:
                list(generation)
            assert [said(generation) for generation in generations] == expected[1:]
            generations = model.generate_batch(prompts, max_new_tokens=NEW)
            next(generations[0])
            del generations, generation  # with all of them, their memory is free
            assert alone(model, prompts, max_new_tokens=NEW) == expected


def test_no_prompts(chunked_folder: Path) -> None:
    with numpy_bloom.load(chunked_folder, threads=1) as model:
        for nothing in ([], ()):
            with pytest.raises(NumpyBloomError, match="there are no prompts"):
                model.generate_batch(nothing)


@pytest.mark.parametrize("wrong", ["", [], [5, -1], [1.5], [[5]]])
def test_a_wrong_prompt_among_others(chunked_folder: Path, wrong: Any) -> None:
    """Told at once, and nothing is held."""
    with numpy_bloom.load(chunked_folder, memory=EVERYTHING, threads=1) as model:
        with pytest.raises(NumpyBloomError, match=r"empty|token id"):
            model.generate_batch([[5], wrong, [6]])
        assert model.model.memory_for_all == 0


def test_texts_and_ids_as_prompts(chunked_folder: Path) -> None:
    with numpy_bloom.load(chunked_folder, threads=1) as model:
        prompts = ["Todos los", model.encode("Todos los"), np.array([5, 6])]
        generations = model.generate_batch(prompts, max_new_tokens=NEW)
        found = to_the_end(generations)
        assert found == alone(model, prompts, max_new_tokens=NEW)
        assert found[0] == found[1]


def test_too_small_a_dial(chunked_folder: Path) -> None:
    """The longest of the prompts decides, before the others have taken their time."""
    prompts = [[5], [6] * 40]
    least, _ = needed_alone(chunked_folder, 1, prompts)
    with numpy_bloom.load(chunked_folder, memory=least - 1, threads=1) as model:
        with pytest.raises(NumpyBloomError, match=r"^prompt 2: this run needs at least "):
            model.generate_batch(prompts, max_new_tokens=NEW)
        assert list(model.generate_batch(prompts[:1], max_new_tokens=NEW)[0])
