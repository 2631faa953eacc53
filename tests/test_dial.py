"""The memory dial: the same bits at every setting, and nothing left behind."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import Checkpoint, byte_ids
from support.commands import Command
from support.conversions import converted
from support.dials import (
    EVERYTHING,
    NEW,
    PROMPT,
    TEXT,
    answer,
    in_many_pieces,
    least_memory,
    model_folder,
    settings,
    share_pinned,
)
from support.threads import open_files, thread_names

import numpy_bloom
from numpy_bloom import generate
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights import store
from numpy_bloom.weights.formats import FORMATS

pytestmark = pytest.mark.usefixtures("past_the_page_cache", "many_pieces")


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_same_bits_at_every_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    in_many_pieces(monkeypatch, dtype)
    folder = model_folder(tmp_path, dtype)
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=1) as model:
        expected = answer(model)
    assert len(set(expected.ids)) > 2  # a text that says something
    shares = set()
    for threads in (1, 2):  # take turns
        for memory in settings(folder, threads)[threads - 1 :: 2]:
            with numpy_bloom.load(folder, memory=memory, threads=threads) as model:
                shares.add(share_pinned(model))
                assert answer(model) == expected
    assert min(shares) == 0
    assert max(shares) == 1
    assert len(shares) > 6


def test_turned_between_runs(chunked_folder: Path) -> None:
    """Nothing is held that there is no room for, and what cannot be is refused."""
    least = least_memory(chunked_folder, 1)
    with numpy_bloom.load(chunked_folder, memory=EVERYTHING, threads=1) as model:
        expected = answer(model)
        assert model.model.bytes_pinned == model.model.weight_bytes
        model.model.turn(least)
        assert model.model.bytes_pinned == 0
        assert answer(model) == expected
        generation = model.generate(PROMPT, max_new_tokens=NEW)
        with pytest.raises(NumpyBloomError, match="this run needs at least"):
            model.model.turn(least // 2)
        assert model.model.memory == least
        assert [token.id for token in generation] == expected.ids


def test_tiles_do_not_depend_on_threads_or_memory(chunked_folder: Path) -> None:
    seen = set()
    for threads, memory in [(1, EVERYTHING), (2, EVERYTHING), (3, least_memory(chunked_folder, 3))]:
        with numpy_bloom.load(chunked_folder, memory=memory, threads=threads) as model:
            matrix = model.model.parameters.blocks[1].mlp.dense_4h_to_h.weight
            rows = []
            for tile in matrix.tiles():
                rows.append((tile.rows.start, tile.rows.stop))
                tile.done()
            seen.add(tuple(rows))
    assert seen == {tuple((start, start + 8) for start in range(0, 32, 8))}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "at_least"),
    # Of a block of 16 rows: 32 bfloat16 each; 12 bits each; 2 scales of 16 bits, 32 times 4 bits.
    [("bfloat16", 64), ("int8", 32), ("bfloat16-packed", 16 * 48), ("int4", 16 * 20)],
)
def test_bytes_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, at_least: int, threads: int
) -> None:
    """Each pass reads what is not pinned, and of the embeddings for each token a row, or as many
    rows as can be read at least."""
    in_many_pieces(monkeypatch, dtype)
    folder = model_folder(tmp_path, dtype)
    for memory in settings(folder, threads)[::2]:
        with numpy_bloom.load(folder, memory=memory, threads=threads) as model:
            generation = model.generate(PROMPT, max_new_tokens=NEW)
            list(generation)
            stream, stats = model.model.stream, generation.stats
            rows = len(set(PROMPT)) + NEW - 1
            assert stats.passes == NEW
            assert stats.weight_bytes_pinned == stream.bytes_pinned
            per_pass = stream.nbytes - stream.bytes_pinned
            assert stats.weight_bytes_read == NEW * per_pass + rows * at_least


def test_a_command_tells_what_it_read(chunked_folder: Path, command: Command) -> None:
    """But not of the rows that are looked up on disk, if all else is in memory."""
    arguments = [TEXT, "--model", chunked_folder, "--max-new-tokens", NEW, "--threads", 1]
    for memory in (least_memory(chunked_folder, 1), EVERYTHING):
        told = command(generate, *arguments, "--memory", memory).err.splitlines()
        assert (len(told) == 2) == (memory < EVERYTHING)  # with a forecast
        read = bool(re.search(r"; \S+ [KM]B read at \S+ [KMG]B/s; peak", told[-1]))
        assert read == (memory < EVERYTHING)


def test_every_chunk_is_told_once_a_pass(
    chunked_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, whether it is pinned or read, and whether it holds one matrix or two."""
    monkeypatch.setattr(store, "CHUNK_BYTES", 4608)  # the end of query_key_value and all of dense
    for memory in settings(chunked_folder, threads=1):
        with numpy_bloom.load(chunked_folder, memory=memory, threads=1) as model:
            tokens = model.generate(PROMPT, max_new_tokens=2)
            chunks = [(chunk.path.stem, chunk.nbytes) for chunk in model.model.stream.chunks]
            told: list[tuple[str, int]] = []
            model.model.watch(lambda name, nbytes, told=told: told.append((name, nbytes)))
            list(tokens)
            assert told == 2 * chunks


@pytest.mark.parametrize("dtype", FORMATS)
def test_tied_embeddings_are_looked_up_in_pinned_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    in_many_pieces(monkeypatch, dtype)
    folder = model_folder(tmp_path, dtype)
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=1) as model:
        untied = answer(model)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["lm_head.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    answers = set()
    for memory in settings(folder, 2)[::2]:
        with numpy_bloom.load(folder, memory=memory, threads=2) as model:
            all_pinned = share_pinned(model) == 1
            answers.add(answer(model).logits)
            assert (model.model.stream.bytes_read == 0) == all_pinned
    assert len(answers) == 1
    assert untied.logits not in answers


@pytest.mark.parametrize("threads", [1, 2])
def test_too_small_a_dial(chunked_folder: Path, threads: int) -> None:
    """The error comes before anything is read or computed."""
    least = least_memory(chunked_folder, threads)
    for memory in (1, 1000, least - 1):
        with numpy_bloom.load(chunked_folder, memory=memory, threads=threads) as model:
            with pytest.raises(NumpyBloomError, match="at least"):
                model.generate(PROMPT, max_new_tokens=NEW)
            assert (model.model.stream.bytes_read, model.model.stream.bytes_pinned) == (0, 0)
    with numpy_bloom.load(chunked_folder, memory=least, threads=threads) as model:
        list(model.generate(PROMPT, max_new_tokens=NEW))


def test_the_least_that_is_named_is_enough(chunked_folder: Path) -> None:
    with (
        numpy_bloom.load(chunked_folder, memory=1, threads=1) as model,
        pytest.raises(NumpyBloomError, match="at least") as error,
    ):
        model.generate(PROMPT, max_new_tokens=NEW)
    named = re.search(r"at least ([\d,.]+ ?[KMG]?B)", str(error.value))
    assert named is not None
    with numpy_bloom.load(chunked_folder, memory=named[1].replace(",", ""), threads=1) as model:
        assert len(list(model.generate(PROMPT, max_new_tokens=NEW))) == NEW


def test_what_a_run_needs_decides_what_is_pinned(chunked_folder: Path) -> None:
    """A long prompt takes memory from the weights, and a short one gives it back."""
    memory, pinned = least_memory(chunked_folder, 1) + 20_000, []
    with numpy_bloom.load(chunked_folder, memory=memory, threads=1) as model:
        for prompt in (PROMPT[:5], PROMPT, PROMPT[:5], PROMPT):
            assert len(list(model.generate(prompt, max_new_tokens=NEW))) == NEW
            pinned.append(model.model.stream.bytes_pinned)
    assert pinned[0] > pinned[1] > 0
    assert pinned[:2] == pinned[2:]


# --- several runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_interleaved_generators(chunked_folder: Path, step: int, threads: int) -> None:
    prompts = [byte_ids("Todos"), byte_ids("la dignidad"), byte_ids("z")]
    for memory in settings(chunked_folder, threads)[::step]:
        with numpy_bloom.load(chunked_folder, memory=memory + 60_000, threads=threads) as model:
            alone = [
                [token.id for token in model.generate(prompt, max_new_tokens=NEW)]
                for prompt in prompts
            ]
            generators = [model.generate(prompt, max_new_tokens=NEW) for prompt in prompts]
            together: list[list[int]] = [[] for _ in prompts]
            for place in [0, 1, 2, 2, 0, 0, 1, 2, 1]:
                together[place].append(next(generators[place]).id)
                assert len(model(PROMPT[:3])) == 3
            assert together == alone


@pytest.mark.parametrize("threads", [1, 2])
def test_leaving_a_generator_half_way(chunked_folder: Path, threads: int) -> None:
    """What it held is free for the next one."""
    for memory in settings(chunked_folder, threads)[:4:3]:
        with numpy_bloom.load(chunked_folder, memory=memory, threads=threads) as model:
            expected = answer(model)
            for count in range(NEW):
                generator = model.generate(PROMPT, max_new_tokens=NEW)
                for _ in range(count):
                    next(generator)
                del generator
                assert answer(model) == expected


def test_a_generator_of_a_closed_model(chunked_folder: Path) -> None:
    before = thread_names()
    for memory in settings(chunked_folder, 2)[::3]:
        for count in (0, 2):
            with numpy_bloom.load(chunked_folder, memory=memory + 60_000, threads=2) as model:
                generator = model.generate(PROMPT, max_new_tokens=NEW)
                for _ in range(count):
                    next(generator)
            with pytest.raises(NumpyBloomError, match="closed"):
                next(generator)
            with pytest.raises(NumpyBloomError, match="closed"):
                model(PROMPT[:3])
    assert thread_names() == before
    assert open_files(chunked_folder) == []


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_nothing_is_left_after_close(chunked_folder: Path, threads: int) -> None:
    before = thread_names()
    for memory in settings(chunked_folder, threads):
        with numpy_bloom.load(chunked_folder, memory=memory, threads=threads) as model:
            answer(model)
            assert thread_names().count("numpy-bloom-team") == threads - 1
            assert open_files(chunked_folder)
        assert thread_names() == before
        assert open_files(chunked_folder) == []


OTHER_PROCESS = """
import sys
import numpy_bloom
with numpy_bloom.load(sys.argv[1], memory=int(sys.argv[2]), threads=1) as model:
    for _ in sys.stdin:
        ids, count = [int(word) for word in sys.argv[3].split()], int(sys.argv[4])
        print([token.id for token in model.generate(ids, max_new_tokens=count)], flush=True)
"""


def test_two_processes_on_one_folder(chunked_folder: Path) -> None:
    """Turn by turn, and both at once."""
    ids = " ".join(map(str, PROMPT))
    arguments = [
        sys.executable,
        "-c",
        OTHER_PROCESS,
        str(chunked_folder),
        "500000000",
        ids,
        str(NEW),
    ]
    root = Path(numpy_bloom.__file__).parents[1]
    with (
        numpy_bloom.load(
            chunked_folder, memory=least_memory(chunked_folder, 2), threads=2
        ) as model,
        subprocess.Popen(
            arguments, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other,
    ):
        assert other.stdin is not None
        assert other.stdout is not None
        expected = answer(model)
        for _ in range(3):
            other.stdin.write("again\n")
            other.stdin.flush()
            assert answer(model) == expected
            assert json.loads(other.stdout.readline()) == expected.ids
            assert answer(model) == expected
        other.stdin.close()
        assert other.wait(60) == 0


def test_a_chunk_may_hold_two_parts_of_one_matrix(tmp_path: Path) -> None:
    """The last row of the head, a part of its own, fits into the chunk of the rows before it."""
    checkpoint = Checkpoint(heads=4, hidden=40, vocab=101, dtype="bfloat16", tokenizer=None)
    folder = converted(checkpoint, tmp_path)
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=1) as model:
        from_memory = model(range(9))
        stream = model.model.stream
        assert stream.bytes_pinned == stream.nbytes
        chunks = [part.chunk for part in model.model.parameters.lm_head._parts]
        assert len(set(chunks)) < len(chunks)
        least = model.model.memory_for_all - stream.nbytes + stream.buffer_bytes
    with numpy_bloom.load(folder, memory=least, threads=1) as model:
        assert np.array_equal(model(range(9)), from_memory)
        assert model.model.stream.bytes_pinned == 0
