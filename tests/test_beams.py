"""Beam search: against all texts there are, against one without caches, and as a user meets it."""

import itertools
import json
import re
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from checkpoints import Checkpoint, byte_ids
from commands import Command, check_failure
from conversions import converted
from interruptions import Interrupt

import numpy_bloom
from numpy_bloom import generate
from numpy_bloom.errors import NumpyBloomError, OptionError
from numpy_bloom.generation import beams
from numpy_bloom.generation.beams import START, BeamOptions, advance, is_over
from numpy_bloom.model.cache import KVCache
from numpy_bloom.model.memory import LIVE_LOGITS

Scores = npt.NDArray[np.float64]

PENALTIES = (1.0, 0.0, 0.6, 2.0, -1.0)
PROMPT = byte_ids("Todos los seres")
NEW = 10
RANDOM: dict[str, Any] = {"heads": 3, "hidden": 24, "lm_head": "different"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[numpy_bloom.Bloom]:
    """A model that never ends a text by itself."""
    checkpoint = Checkpoint(**RANDOM, config={"eos_token_id": None})
    with numpy_bloom.load(converted(checkpoint, tmp_path_factory.mktemp("endless"))) as model:
        yield model


def small_model(folder: Path, seed: int, vocab: int, eos: Any, gain: float) -> numpy_bloom.Bloom:
    checkpoint = Checkpoint(**RANDOM, vocab=vocab, seed=seed, tokenizer=None)
    checkpoint.tensors["lm_head.weight"] *= np.float32(gain)
    checkpoint.config["eos_token_id"] = eos
    return numpy_bloom.load(converted(checkpoint, folder), threads=1)


def log_probabilities(model: numpy_bloom.Bloom, ids: Sequence[int]) -> Scores:
    """Of the token after a text: a full pass, without cache."""
    logits = model(ids)[-1].astype(np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def found(model: numpy_bloom.Bloom, prompt: Any, **options: Any) -> Any:
    """A search that is over."""
    search = model.beam_search(prompt, **options)
    tokens = list(search)
    assert [token.id for token in tokens] == search.token_ids
    return search


# Against all texts there are.


def all_texts(
    model: numpy_bloom.Bloom, prompt: list[int], new: int
) -> dict[tuple[int, ...], float]:
    """The log-probability of every text that ends with an end of text, or has so many tokens."""
    complete: dict[tuple[int, ...], float] = {}
    begun: dict[tuple[int, ...], float] = {(): 0.0}
    for length in range(1, new + 1):
        grown = {}
        for text, score in begun.items():
            for token_id, logprob in enumerate(log_probabilities(model, [*prompt, *text])):
                ends = token_id in model.config.eos_token_ids or length == new
                (complete if ends else grown)[(*text, token_id)] = score + float(logprob)
        begun = grown
    return complete


@pytest.mark.parametrize("seed", range(4))
def test_the_best_of_all_texts(tmp_path: Path, seed: int) -> None:
    """With a beam for every text there is, none is missed."""
    vocab, new, eos = 5, 4, [2, 4] if seed % 2 else 2
    going_on = vocab - len(np.atleast_1d(eos))
    with small_model(tmp_path, seed, vocab, eos, 0.4) as model:
        texts = all_texts(model, [3, 0], new)
        assert sum(np.exp(score) for score in texts.values()) == pytest.approx(1, abs=1e-5)
        lengths = set()
        for penalty, early_stopping in itertools.product(PENALTIES, (False, True)):
            scores = {text: score / len(text) ** penalty for text, score in texts.items()}
            second, best = sorted(scores, key=lambda text: scores[text])[-2:]
            assert scores[best] - scores[second] > 1e-4
            search = found(
                model,
                [3, 0],
                num_beams=going_on ** (new - 1) * vocab,
                max_new_tokens=new,
                length_penalty=penalty,
                early_stopping=early_stopping,
            )
            assert search.token_ids == list(best)
            assert search.score == pytest.approx(scores[best], abs=1e-5)
            lengths.add(len(best))
        assert len(lengths) > 1  # the penalty has a say


# Against a search without caches, of a straightforward kind.


def plain_search(
    model: numpy_bloom.Bloom,
    prompt: list[int],
    num_beams: int,
    length_penalty: float,
    early_stopping: bool,
    repetition_penalty: float,
) -> tuple[list[int], float, int]:
    """The best text, its score, and the number of steps."""
    running = [(0.0, list[int]())]
    ended: list[tuple[float, list[int]]] = []
    for step in range(1, NEW + 1):
        grown = []
        for total, ids in running:
            scores = log_probabilities(model, prompt + ids)
            scores[list({*prompt, *ids})] *= repetition_penalty  # they are all negative
            grown += [(total + score, [*ids, token]) for token, score in enumerate(scores)]
        grown.sort(reverse=True)
        at_end = [text for _, text in grown if text[-1] in model.config.eos_token_ids]
        if step == NEW:
            at_end = [text for _, text in grown]
        for total, ids in grown[:num_beams]:
            if ids in at_end:
                ended.append((total / step**length_penalty, ids))
        ended = sorted(ended, reverse=True)[:num_beams]
        running = [text for text in grown if text[1] not in at_end][:num_beams]
        if len(ended) == num_beams and (
            early_stopping or not running or running[0][0] / step**length_penalty <= ended[-1][0]
        ):
            break
    return ended[0][1], ended[0][0], step


@pytest.mark.parametrize("seed", range(6))
def test_the_same_without_caches(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = []
    real = KVCache.copy_prefix

    def counted(cache: KVCache, other: KVCache, tokens: int, known: int = 0) -> None:
        copies.append((tokens, known))
        real(cache, other, tokens, known)

    monkeypatch.setattr(KVCache, "copy_prefix", counted)
    prompt, results, steps = [3, 9, 3, 14], set(), set()
    with small_model(tmp_path, seed, 20, None, 1.0) as model:
        likely = plain_search(model, prompt, 3, 1.0, False, 1.3)[0]
        ends = (likely[4], likely[7], 11)[: 1 + seed % 3]
        model.config = replace(model.config, eos_token_ids=ends)
        for number, (num_beams, early_stopping) in enumerate(
            itertools.product((2, 3, 4, 5), (False, True))
        ):
            penalty = PENALTIES[(number + seed) % 5]
            repetition = 1.3 if number % 3 == 0 else 1.0
            options = (num_beams, penalty, early_stopping, repetition)
            ids, score, passes = plain_search(model, prompt, *options)
            search = found(
                model,
                prompt,
                max_new_tokens=NEW,
                num_beams=num_beams,
                length_penalty=penalty,
                early_stopping=early_stopping,
                repetition_penalty=repetition,
            )
            assert search.token_ids == ids
            assert search.score == pytest.approx(score, abs=1e-4)
            assert search.stats.passes == passes
            assert search.finish_reason == ("eos" if ids[-1] in ends else "length")
            results.add(tuple(ids))
            steps.add(passes)
    assert len(results) > 1
    assert len(steps) > 1
    # The prompt is copied once to each other beam, later only what they have not in common.
    assert {known for tokens, known in copies if tokens == len(prompt)} == {0}
    later = [(tokens, known) for tokens, known in copies if tokens > len(prompt)]
    assert later
    assert all(len(prompt) <= known < tokens for tokens, known in later)


# By hand: three tokens, of which 0 ends a text.


def walk(table: list[list[list[float]]], **given: Any) -> list[Any]:
    """The beams after each step. The table has a row of probabilities for each that runs."""
    options = BeamOptions(**{"num_beams": 2, "max_new_tokens": 9, "eos_token_ids": [0], **given})
    state, states = START, []
    for rows in table:
        assert not is_over(state, options)
        state = advance(state, np.log(np.array(rows, np.float32)), [1], options)
        states.append(state)
    assert is_over(state, options)
    return states


def told(found: Sequence[Any]) -> list[tuple[list[int], float]]:
    return [(beam.token_ids, pytest.approx(float(np.exp(beam.score)), rel=1e-5)) for beam in found]


def test_an_end_counts_among_the_best_only() -> None:
    first, second, third = walk(
        [
            [[0.2, 0.5, 0.3]],
            [[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]],
            [[0.8, 0.15, 0.05], [0.1, 0.8, 0.1]],
        ],
        length_penalty=0.0,
    )
    assert told(first.running) == [([1], 0.5), ([2], 0.3)]
    assert told(first.ended) == []  # the end of text was but third
    assert told(second.running) == [([2, 2], 0.21), ([1, 1], 0.15)]
    assert told(second.ended) == [([1, 0], 0.3)]
    assert told(third.running) == [([1, 1, 1], 0.12), ([2, 2, 1], 0.0315)]
    assert told(third.ended) == [([1, 0], 0.3), ([2, 2, 0], 0.168)]


TWO_ENDED = [[[0.5, 0.4, 0.1]], [[0.3, 0.65, 0.05], [0.9, 0.05, 0.05]]]
"""By now .5 [0] and .12 [1 0] have ended, but .26 [1 1] is better than the latter."""


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_early_stopping(penalty: float) -> None:
    last = walk(TWO_ENDED, early_stopping=True, length_penalty=penalty)[-1]
    assert told(last.ended) == [([0], 0.5), ([1, 0], 0.12 ** (0.5**penalty))]
    assert told(last.running) == [([1, 1], 0.26), ([1, 2], 0.02)]


@pytest.mark.parametrize(
    ("penalty", "row", "ended"),
    [
        (0.0, [0.4, 0.35, 0.25], [([0], 0.5), ([1, 0], 0.12)]),
        (0.0, [0.6, 0.25, 0.15], [([0], 0.5), ([1, 1, 0], 0.156)]),
        (1.0, [0.6, 0.25, 0.15], [([1, 1, 0], 0.156 ** (1 / 3)), ([0], 0.5)]),
    ],
)
def test_going_on_while_the_best_that_runs_would_count(
    penalty: float, row: list[float], ended: list[tuple[list[int], float]]
) -> None:
    """What runs is divided by its length, too: .26 ** (1/2) is more than .12 ** (1/2)."""
    last = walk([*TWO_ENDED, [row, [0.5, 0.4, 0.1]]], length_penalty=penalty)[-1]
    assert told(last.ended) == ended


def test_the_penalty_is_of_the_length_with_the_end() -> None:
    _, last = walk([[[0.1, 0.8, 0.1]], [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]]], max_new_tokens=2)
    assert told(last.ended) == [([1, 0], 0.56**0.5), ([1, 1], 0.16**0.5)]
    assert told(last.running) == []


def test_a_vocabulary_smaller_than_the_beams() -> None:
    """There are fewer beams at first, and none that are followed twice."""
    first, last = walk(
        [[[0.2, 0.5, 0.3]], [[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]], num_beams=9, max_new_tokens=2
    )
    assert told(first.running) == [([1], 0.5), ([2], 0.3)]
    assert len(last.ended) == 7
    assert walk([[[0.2, 0.5, 0.3]]], eos_token_ids=[0, 1, 2])[0].ended[0].token_ids == [1]


@pytest.mark.parametrize("penalty", [1e6, -1e6])
def test_penalties_beyond_all_numbers(penalty: float) -> None:
    table = [[[0.1, 0.8, 0.1]], [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]]]
    assert len(walk(table, max_new_tokens=2, length_penalty=penalty)[-1].ended) == 2


# As a user meets it.


def test_one_beam_is_greedy(model: numpy_bloom.Bloom, tmp_path: Path) -> None:
    def check(model: numpy_bloom.Bloom, reason: str) -> Any:
        greedy = model.generate(PROMPT, max_new_tokens=NEW)
        tokens = list(greedy)
        for options in ({}, {"length_penalty": -1.0}, {"early_stopping": True}):
            search = model.beam_search(PROMPT, num_beams=1, max_new_tokens=NEW, **options)
            assert [(token.id, token.text) for token in search] == [
                (token.id, token.text) for token in tokens
            ]
            assert (search.text, search.finish_reason) == (greedy.text, reason)
            assert search.stats.passes == greedy.stats.passes
        return greedy

    ids = check(model, "length").token_ids
    end = next(i for i in ids[2:] if i not in ids[:2])
    checkpoint = Checkpoint(**RANDOM, config={"eos_token_id": end})
    with numpy_bloom.load(converted(checkpoint, tmp_path)) as ending:
        assert check(ending, "eos").token_ids[-1] == end


def test_what_a_search_tells(model: numpy_bloom.Bloom) -> None:
    search = model.beam_search(PROMPT, num_beams=3, max_new_tokens=NEW, repetition_penalty=1.3)
    assert (search.finish_reason, search.token_ids, search.text) == (None, [], "")
    assert (search.score, search.stats.passes) == (None, 0)
    tokens = list(search)
    assert next(search, None) is None
    assert search.prompt_token_ids == PROMPT
    assert len(search.token_ids) == len(tokens) == NEW
    assert search.text == "".join(token.text for token in tokens) == model.decode(search.token_ids)
    assert search.stats.passes == NEW
    assert search.stats.tokens_per_pass == 1
    assert search.stats.prefill_seconds > 0
    assert search.stats.decode_seconds > 0
    for place, token in enumerate(tokens):  # of the model itself, without the penalty
        scores = log_probabilities(model, PROMPT + search.token_ids[:place])
        assert token.logprob == pytest.approx(float(scores[token.id]), abs=1e-4)


def test_the_score_is_that_of_the_tokens(model: numpy_bloom.Bloom) -> None:
    search = model.beam_search(PROMPT, num_beams=3, max_new_tokens=NEW, length_penalty=0.5)
    total = sum(token.logprob for token in search)
    assert search.score == pytest.approx(total / NEW**0.5, rel=1e-5)


def test_stop(model: numpy_bloom.Bloom) -> None:
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": NEW, "repetition_penalty": 1.5}
    whole = model.beam_search(PROMPT, **options)
    texts = [token.text for token in whole]
    stop = next(text for text in texts[2:] if text.strip("\ufffd"))
    search = found(model, PROMPT, stop=["never there", stop], **options)
    assert search.finish_reason == "stop"
    assert search.text == whole.text[: whole.text.index(stop)]
    assert search.token_ids == whole.token_ids[: len(search.token_ids)]
    assert len(search.token_ids) < NEW
    assert search.score == whole.score


def test_text_as_prompt(model: numpy_bloom.Bloom) -> None:
    searches = [
        found(model, prompt, num_beams=2, max_new_tokens=3)
        for prompt in ("Todos los", model.encode("Todos los"), np.array(model.encode("Todos los")))
    ]
    assert len({tuple(search.token_ids) for search in searches}) == 1
    for wrong in ("", [], [5, -1]):
        with pytest.raises(NumpyBloomError, match=r"empty|token id -1"):
            model.beam_search(wrong, num_beams=2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_beams": 0}, "num_beams is 0; expected a value in [1, inf), whole"),
        ({"num_beams": 2.5}, "num_beams is 2.5; expected a value in [1, inf), whole"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected a value in [1, inf), whole"),
        (
            {"length_penalty": float("nan")},
            "length_penalty is nan; expected a value in (-inf, inf)",
        ),
        (
            {"length_penalty": float("inf")},
            "length_penalty is inf; expected a value in (-inf, inf)",
        ),
        ({"early_stopping": "never"}, "early_stopping is 'never'; expected True or False"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; expected a value in (0, inf)"),
        ({"stop": [""]}, "stop text is empty"),
    ],
)
def test_options_out_of_range(model: numpy_bloom.Bloom, options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError) as error:
        model.beam_search(PROMPT, **{"num_beams": 2, **options})
    assert told in str(error.value)


def test_going_on_after_ctrl_c(model: numpy_bloom.Bloom) -> None:
    """At any line of the search, or of the cache: the result is the same."""
    package = Path(beams.__file__).parents[1]
    files = [
        package / part for part in ("generation/beams.py", "generation/seats.py", "model/cache.py")
    ]
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 5, "repetition_penalty": 1.5}
    expected = found(model, PROMPT, **options)
    assert len(set(expected.token_ids)) == 5
    with Interrupt(0, files) as undisturbed:
        found(model, PROMPT, **options)
    for place in range(1, undisturbed.lines, 11):
        search = model.beam_search(PROMPT, **options)
        with suppress(KeyboardInterrupt), Interrupt(place, files):
            list(search)
        list(search)
        assert (search.token_ids, search.score) == (expected.token_ids, expected.score)
        assert search.text == expected.text


def test_output_that_is_not_finite(tmp_path: Path) -> None:
    checkpoint = Checkpoint(**RANDOM)
    checkpoint.tensors["lm_head.weight"][7] = 3e38
    checkpoint.tensors["ln_f.bias"][:] = 3e3
    with (
        numpy_bloom.load(converted(checkpoint, tmp_path)) as model,
        pytest.raises(NumpyBloomError, match="not finite"),
    ):
        list(model.beam_search(PROMPT, num_beams=2))


def needed(model: numpy_bloom.Bloom) -> int:
    """All but weights, of the run that was prepared last."""
    return model.model.memory_for_all - model.model.stream.nbytes


@pytest.mark.parametrize("tokens", [3, 15])
def test_memory_that_is_told(model: numpy_bloom.Bloom, tokens: int) -> None:
    """A pass of the prompt, or of a token for each beam, and the caches of all beams."""
    model.beam_search(PROMPT[:tokens], num_beams=5, max_new_tokens=40)
    work = model.model.working_bytes(max(5, tokens), tokens + 39, logit_rows=5)
    caches = KVCache.nbytes(model.config, 5 * (tokens + 39))
    assert needed(model) == model.model.store.vector_bytes + caches + work


def test_memory(tmp_path: Path) -> None:
    """What is told is enough, and given back when the search is over."""
    folder = converted(Checkpoint(**RANDOM), tmp_path)
    options: dict[str, Any] = {"max_new_tokens": 40}
    with numpy_bloom.load(folder, memory="1GB", threads=1) as model:
        expected = found(model, PROMPT, num_beams=5, **options)
        least = needed(model) + min(model.model.stream.nbytes, model.model.stream.buffer_bytes)
    with numpy_bloom.load(folder, memory=least, threads=1) as model:
        searches = [found(model, PROMPT, num_beams=5, **options) for _ in range(2)]
        assert [search.token_ids for search in searches] == [expected.token_ids] * 2
    with numpy_bloom.load(folder, memory=least - 1, threads=1) as model:
        with pytest.raises(NumpyBloomError, match="this run needs at least"):
            model.beam_search(PROMPT, num_beams=5, **options)
        found(model, PROMPT, num_beams=4, **options)


def test_choosing_takes_no_more_than_is_estimated() -> None:
    vocab, options = 250_880, BeamOptions(5, 9, [2], repetition_penalty=1.2)
    logits = np.random.default_rng(0).standard_normal((5, vocab), dtype=np.float32)
    state = advance(START, logits[:1], [1], options)
    tracemalloc.start()
    advance(state, logits, [1], options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 4 * vocab * LIVE_LOGITS


# The command.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(Checkpoint(**RANDOM), tmp_path_factory.mktemp("command"))


ARGUMENTS = ("--num-beams", 3, "--max-new-tokens", 6)


def expected(folder: Path, prompt: str, **options: Any) -> Any:
    with numpy_bloom.load(folder) as model:
        return found(model, prompt, **{"num_beams": 3, "max_new_tokens": 6, **options})


def test_text(command: Command, folder: Path) -> None:
    result = command(generate, "Todos", "--model", folder, *ARGUMENTS)
    search = expected(folder, "Todos")
    assert (result.code, result.out) == (0, search.text + "\n")
    count, new = len(search.prompt_token_ids), len(search.token_ids)
    assert re.fullmatch(rf"{count} tokens in [\d.]+ s, then {new} new ones .*\n", result.err)


def test_json(command: Command, folder: Path) -> None:
    options = ("--length-penalty", -2.5, "--early-stopping", "--repetition-penalty", 1.5)
    result = command(generate, "Todos", "--model", folder, *ARGUMENTS, *options, "--json")
    search = expected(
        folder, "Todos", length_penalty=-2.5, early_stopping=True, repetition_penalty=1.5
    )
    assert (result.code, result.err) == (0, "")
    printed = json.loads(result.out)
    assert printed.pop("stats")["passes"] == search.stats.passes
    assert printed == {
        "prompt": "Todos",
        "prompt_token_ids": search.prompt_token_ids,
        "token_ids": search.token_ids,
        "text": search.text,
        "finish_reason": search.finish_reason,
        "score": search.score,
    }
    assert search.score != expected(folder, "Todos").score


def test_prompts_file(command: Command, folder: Path, tmp_path: Path) -> None:
    """One after the other, each with the memory that one needs."""
    prompts = ["Todos los", "a", "seres humanos"]
    file = tmp_path / "prompts"
    file.write_text("\n".join(prompts))
    with numpy_bloom.load(folder) as model:
        model.beam_search(prompts[2], num_beams=3, max_new_tokens=6)
        least = needed(model) + model.model.stream.nbytes
    arguments = (*ARGUMENTS, "--memory", least, "--prompts-file", file)
    result = command(generate, "--model", folder, *arguments)
    assert (result.code, result.err) == (0, "")
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    for line in lines:
        assert line["token_ids"] == expected(folder, line["prompt"]).token_ids


def test_show_tokens(command: Command, folder: Path) -> None:
    result = command(generate, "Todos", "--model", folder, *ARGUMENTS, "--show-tokens")
    assert result.code == 0
    assert len(result.out.splitlines()) == len(expected(folder, "Todos").token_ids)


@pytest.mark.parametrize(
    "option",
    [
        "--temperature=0.5",
        "--temperature=0",
        "--top-k=5",
        "--top-p=0.5",
        "--min-p=0.1",
        "--seed=0",
        "--num-samples=2",
        "--draft-model=prompt-lookup",
        "--draft-tokens=3",
    ],
)
def test_options_that_do_not_go_together(command: Command, folder: Path, option: str) -> None:
    result = command(generate, "Todos", "--model", folder, *ARGUMENTS, option)
    flag = option.partition("=")[0]
    check_failure(result, "generate", f"{flag} does not go with --num-beams", 2)


def test_options_that_need_beams(command: Command, folder: Path) -> None:
    for option in ("--early-stopping", "--length-penalty=0.5"):
        for beams_given in ((), ("--num-beams=1",)):
            result = command(generate, "Todos", "--model", folder, option, *beams_given)
            flag = option.partition("=")[0]
            check_failure(result, "generate", f"{flag} is for a beam search", 2)


def test_a_number_of_beams_out_of_range(command: Command, folder: Path) -> None:
    result = command(generate, "Todos", "--model", folder, "--num-beams", 0)
    check_failure(result, "generate", "num_beams is 0; expected a value in [1, inf), whole", 2)


def test_one_beam_is_no_search(command: Command, folder: Path) -> None:
    arguments = ("--model", folder, "--max-new-tokens", 6, "--repetition-penalty", 1.3)
    plain = command(generate, "Todos", *arguments)
    assert command(generate, "Todos", *arguments, "--num-beams", 1).out == plain.out
