"""Who gets which blocks, and what is said of it."""

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import PROMPTS, distributed, opened
from support.commands import Command, check_failure
from support.dials import in_many_pieces

import numpy_bloom
from numpy_bloom import evaluate, generate
from numpy_bloom.cluster import open as open_cluster
from numpy_bloom.cluster import share
from numpy_bloom.cluster.plan import Part, Sizes, Worker, deal, expected_seconds, plan_text, redeal
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.running.model import Model
from numpy_bloom.weights.folder import EMBEDDINGS, FINAL_LAYERNORM, block_file

BLOCKS = 12
SIZES = Sizes([100] * BLOCKS, 300, [FINAL_LAYERNORM, EMBEDDINGS])


def worker(name: str, memory: int, blocks: range | None = None, ends: str = "both") -> Worker:
    names = {block_file(i) for i in (range(BLOCKS) if blocks is None else blocks)}
    names |= {EMBEDDINGS} if ends in ("both", "first") else set()
    names |= {EMBEDDINGS, FINAL_LAYERNORM} if ends in ("both", "last") else set()
    return Worker(name, memory, 1, frozenset(names))


def dealt(*workers: Worker) -> list[tuple[str, int, int, bool, bool]]:
    parts = deal(workers, SIZES, "MODEL")
    assert sum(part.nbytes for part in parts) == 1500
    assert [i for part in parts for i in part.blocks] == list(range(BLOCKS))
    return [
        (part.worker.address, part.blocks.start, part.blocks.stop, part.embeds, part.unembeds)
        for part in parts
    ]


def test_ranges_are_in_proportion_to_memory() -> None:
    assert dealt(worker("a", 10)) == [("a", 0, 12, True, True)]
    # 500 bytes each, of which the head takes 300.
    assert dealt(worker("a", 9), worker("b", 9), worker("c", 9)) == [
        ("b", 0, 5, True, False),
        ("c", 5, 10, False, False),
        ("a", 10, 12, False, True),
    ]
    # Who has most memory has the head; who has none to speak of gets nothing.
    assert dealt(worker("a", 200), worker("b", 400), worker("c", 4)) == [
        ("a", 0, 5, True, False),
        ("b", 5, 12, False, True),
    ]


def test_who_has_nothing_of_the_model_does_not_count() -> None:
    nothing = Worker("n", 10**6, 1, frozenset())
    assert dealt(worker("a", 9), worker("b", 9), nothing) == dealt(worker("a", 9), worker("b", 9))


def test_the_dashboard_shows_whole_names() -> None:
    """Dask cuts the name of a task at some hyphens."""
    for part in deal([worker("a", 9), worker("b", 9)], SIZES, "MODEL"):
        name = f"{part}, 4 tokens"
        assert distributed.utils.key_split(f"{name}-{'0a' * 16}") == name


def test_more_workers_than_blocks() -> None:
    parts = deal([worker(f"{i:02d}", 1) for i in range(40)], SIZES, "MODEL")
    assert [len(part.blocks) for part in parts] == [1] * BLOCKS + [0]
    assert parts[-1].unembeds


def test_copies_of_some_blocks() -> None:
    first, second = worker("z", 1, range(7), "first"), worker("a", 9, range(7, 12), "last")
    assert dealt(second, first) == [("z", 0, 7, True, False), ("a", 7, 12, False, True)]
    # Two machines with the same part share it; who has all fills the gap.
    twice = worker("y", 1, range(7), "first")
    assert dealt(first, twice, second)[-1] == ("a", 7, 12, False, True)
    gap = worker("g", 5)
    assert dealt(worker("z", 5, range(3), "first"), worker("a", 9, range(6, 12), "last"), gap) == [
        ("z", 0, 3, True, False),
        ("g", 3, 7, False, False),
        ("a", 7, 12, False, True),
    ]


@pytest.mark.parametrize(
    ("workers", "error"),
    [
        ([Worker("a", 1, 1, frozenset())], "no worker of the cluster finds MODEL"),
        ([worker("a", 1, range(11))], "has block_011.safetensors of MODEL, complete"),
        ([worker("a", 1, ends="first")], f"has {FINAL_LAYERNORM} of MODEL"),
        (
            [worker("a", 1, range(8), "last"), worker("b", 1, range(8, 12), "first")],
            "make up no chain of ranges, one for each worker: block_",
        ),
    ],
)
def test_what_is_lacking_is_told(workers: list[Worker], error: str) -> None:
    with pytest.raises(NumpyBloomError, match=error) as told_of:
        deal(workers, SIZES, "MODEL")
    assert "\n" not in str(told_of.value)


def test_a_lost_part_goes_to_who_has_none() -> None:
    a, b, c, spare = worker("a", 500), worker("b", 500), worker("c", 500), worker("s", 501)
    parts = deal([a, b, c], SIZES, "MODEL")
    again = redeal(parts, [0], [a, c, spare], SIZES)
    assert [part.worker for part in again] == [spare, c, a]
    assert [part.memory for part in again] == [501, 500, 500]
    # Else to who has most memory left, if that one was too small to be dealt anything; it is shared
    # out by bytes.
    small, large = worker("small", 100), worker("large", 2000)
    again = redeal(parts, [0, 1], [small, replace(a, memory=2000)], SIZES)
    assert [part.worker.address for part in again] == ["a", "a", "a"]
    again = redeal(parts, [0, 1], [a, large], SIZES)
    assert [part.worker for part in again] == [large, large, a]
    assert [part.memory for part in again] == [1000, 1000, 500]
    assert sum(part.nbytes for part in again) == 1500


def test_a_lost_part_that_no_other_has() -> None:
    first, second = worker("a", 1, range(7), "first"), worker("b", 9, range(7, 12), "last")
    parts = deal([first, second], SIZES, "MODEL")
    with pytest.raises(NumpyBloomError, match="no other one has the files of blocks 0 to 6"):
        redeal(parts, [0], [second], SIZES)


def test_what_is_expected() -> None:
    """Bytes by rate: from memory what fits, the rest from disk; and a pass without any."""
    fast = Worker("fast", 1000, 1, frozenset(), rate=1000, disk_rate=100)
    slow = Worker("slow", 200, 1, frozenset(), rate=500, disk_rate=50)
    parts = [
        Part(fast, range(5), True, False, 500, 1000),
        Part(slow, range(5, 12), False, True, 1000, 200),
    ]
    assert expected_seconds(parts, 0.25) == 0.25 + 500 / 1000 + 200 / 500 + 800 / 50
    text = plan_text(parts, 0.25)
    assert text.count("\n") == 2
    assert "blocks 0 to 4 on fast: 500 B" in text
    assert "blocks 5 to 11 and head on slow: 1 KB, memory 200 B, 16 s, 800 B read" in text


def test_a_share_is_streamed(
    folder: Path,
    cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where memory does not suffice, weights are read in every pass: the same bits."""
    caplog.set_level("INFO", logger="numpy_bloom")
    in_many_pieces(monkeypatch)
    with numpy_bloom.load(folder) as one:
        expected, scores = one(PROMPTS[0]), one.score(PROMPTS[0])
    with distributed.Client(cluster) as client:
        client.run(lambda: in_many_pieces(pytest.MonkeyPatch()))
        with opened(folder, client) as spread:
            spread(PROMPTS[0])
            told_of = client.run(lambda: [needed(one._model) for one in share._here.values()])
            weights = spread.model.weight_bytes
        whole, nbytes, least = max(one for (one,) in told_of.values())
        memory = whole - (nbytes - least) // 2
        with opened(folder, client, memory=memory) as spread:
            assert np.array_equal(spread(PROMPTS[0]), expected)
            assert len(spread.model._groups(3)) == 1  # each would read the weights again
            streamed = weights - spread.model.bytes_pinned
            assert 0 < streamed < weights
            before = spread.model.bytes_read
            assert np.array_equal(spread(PROMPTS[0]), expected)
            assert spread.model.bytes_read - before >= streamed
            assert np.array_equal(spread.score(PROMPTS[0]), scores)
            with pytest.raises(NumpyBloomError, match="this run needs at least"):
                spread.generate(PROMPTS[0], max_new_tokens=10**6)
    assert "on 2 workers, about" in caplog.text
    assert capfd.readouterr().err == ""  # of a program that imports it


def needed(model: Model) -> tuple[int, int, int]:
    """All that its run would take; its weights, and what they would take at least."""
    return model.memory_for_all, model.weight_bytes, model._least_weights(resident=False)


def test_commands(command: Command, tmp_path: Path) -> None:
    """They say the same with a cluster as without, and tell the plan."""
    text = tmp_path / "text"
    text.write_text("Todos los seres humanos nacen libres e iguales en dignidad y derechos.")
    options = ["Todos los seres humanos nacen", "--max-new-tokens", 5]
    runs = [(generate, options), (evaluate, [text, "--window", 8])]
    for module, arguments in runs:
        alone, spread = (
            command(module, *arguments, *cluster) for cluster in ([], ["--cluster", "local:1"])
        )
        assert (spread.code, spread.out) == (0, alone.out)
        assert "MB of weights on 1 worker, about " in spread.err


@pytest.mark.parametrize(
    ("address", "told_of", "code"),
    [
        ("local:0", "cluster is 'local:0'; expected the address of a scheduler", 2),
        ("tcp://127.0.0.1:1", "no scheduler answers at tcp://127.0.0.1:1", 1),
        ("tcp:nonsense", "cluster is 'tcp:nonsense'; expected", 2),
        ("tcp://127.0.0.1", "cluster is 'tcp://127.0.0.1'; expected", 2),
        ("http://127.0.0.1:1", "cluster is 'http://127.0.0.1:1'; expected", 2),
        ("tls://127.0.0.1:1", "tls://127.0.0.1:1 needs certificates, by Dask's", 1),
    ],
)
def test_no_cluster(
    command: Command, address: str, told_of: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_cluster, "CONNECT_SECONDS", 0.2)
    result = command(generate, "x", "--cluster", address)
    check_failure(result, "generate", told_of, code)


def test_a_scheduler_that_says_nothing(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_cluster, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        result = command(generate, "x", "--cluster", address)
    told = f"no scheduler answers at {address}: 0.2 s of silence; start one: dask scheduler"
    check_failure(result, "generate", told)
