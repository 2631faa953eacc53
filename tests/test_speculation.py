"""Greedy continuations with guesses: what is said is what is said without, token for token."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.batches import Said, alone, ending, endless, said, watch_passes
from support.checkpoints import Checkpoint, byte_ids
from support.conversions import converted, demo_checkpoint
from support.dials import EVERYTHING
from support.interruptions import Interrupt

import numpy_bloom
from conversion import convert
from numpy_bloom.bloom import Bloom
from numpy_bloom.generation.drafts import PromptLookup

NEW = 16
PROMPT = byte_ids("Todos los")
LANGUAGES = json.loads(
    (Path(__file__).parent / "reference" / "demo_languages.json").read_text(encoding="utf-8")
)


def contrary() -> Checkpoint:
    """What `endless()` finds least likely is likeliest for it: it is always wrong."""
    result = endless()
    result.tensors["lm_head.weight"] *= -1
    return result


Opened = Callable[[Checkpoint], Bloom]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    models = []

    def open_(checkpoint: Checkpoint) -> Bloom:
        folder = converted(checkpoint, tmp_path_factory.mktemp("speculation"))
        models.append(numpy_bloom.load(folder, memory=EVERYTHING, threads=1))
        return models[-1]

    yield open_
    for model in models:
        model.close()


@pytest.fixture(scope="module")
def model(opened: Opened) -> Bloom:
    return opened(endless())


@pytest.fixture(scope="module")
def drafts(opened: Opened) -> dict[str, Any]:
    return {
        "prompt-lookup": "prompt-lookup",
        "equal": opened(endless()),
        "another": opened(endless(seed=1, blocks=1)),
        "always wrong": opened(contrary()),
    }


@pytest.fixture(scope="module")
def demo() -> Iterator[Bloom]:
    with numpy_bloom.load(threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def demo_in_int8(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bloom]:
    folder = tmp_path_factory.mktemp("demo")
    convert(demo_checkpoint(folder / "source"), folder / "int8", "int8")
    with numpy_bloom.load(folder / "int8", threads=1) as model:
        yield model


def guessed(model: Bloom, prompts: list[Any], **options: Any) -> list[Said]:
    generations = model.generate_batch(prompts, **options)
    for generation in generations:
        list(generation)
    return [said(generation) for generation in generations]


# --- token for token ------------------------------------------------------------------------------


@pytest.mark.parametrize("draft_tokens", [1, 2, 3, 4, 5, 8, 16])
def test_greedily_the_same(model: Bloom, drafts: dict[str, Any], draft_tokens: int) -> None:
    """Alone and together, with every end there is."""
    numbers = random.Random(draft_tokens)
    prompts = [[numbers.randrange(4, 260) for _ in range(numbers.randint(1, 9))] for _ in range(4)]
    prompts[1] = prompts[1] * 3  # something to look up
    options: dict[str, Any] = {"max_new_tokens": numbers.randint(1, NEW)}
    if draft_tokens % 2:
        options["repetition_penalty"] = 1.3
    plain = alone(model, prompts, **options)
    ends = {numbers.choice(one.token_ids) for one in plain[:2]}
    options["stop"] = [letter for letter in plain[2].text if letter.isascii()][-1:]
    with ending(model, ends):
        expected = alone(model, prompts, **options)
        options["draft_tokens"] = draft_tokens
        for name, draft in drafts.items():
            assert guessed(model, prompts, draft_model=draft, **options) == expected, name
            assert alone(model, prompts[:2], draft_model=draft, **options) == expected[:2], name


@pytest.mark.parametrize("draft_tokens", [1, 3, 8])
def test_every_end_within_guesses_that_hold(
    model: Bloom, drafts: dict[str, Any], draft_tokens: int
) -> None:
    """After each number of tokens: by length, by a token, and by a text."""
    options: dict[str, Any] = {"draft_model": drafts["equal"], "draft_tokens": draft_tokens}
    tokens = list(model.generate(PROMPT, max_new_tokens=NEW))
    ids, ends = [token.id for token in tokens], set()
    for count in range(1, NEW + 1):
        generation = model.generate(PROMPT, max_new_tokens=count, **options)
        assert [token.id for token in generation] == ids[:count]
        assert generation.finish_reason == "length"
        with ending(model, ids[count - 1 : count]):
            generation = model.generate(PROMPT, max_new_tokens=NEW, **options)
        end = ids.index(ids[count - 1])
        assert [token.id for token in generation] == ids[: end + 1]
        assert generation.finish_reason == "eos"
        ends.add(end)
        if stop := tokens[count - 1].text.strip("\ufffd"):
            (expected,) = alone(model, [PROMPT], max_new_tokens=NEW, stop=[stop])
            assert expected.finish_reason == "stop"
            assert guessed(model, [PROMPT], max_new_tokens=NEW, stop=[stop], **options) == [
                expected
            ]
    assert len(ends) > 3


def test_probabilities_are_the_models_own(model: Bloom, drafts: dict[str, Any]) -> None:
    plain = [token.logprob for token in model.generate(PROMPT, max_new_tokens=NEW)]
    for draft in drafts.values():
        tokens = model.generate(PROMPT, max_new_tokens=NEW, draft_model=draft)
        np.testing.assert_allclose([token.logprob for token in tokens], plain, atol=1e-4)


def test_many_texts_of_the_demo_model(demo: Bloom, demo_in_int8: Bloom, step: int) -> None:
    """Fifty, or two hundred. A model that guesses does so for each text apart: it is asked for some
    of them."""
    numbers = random.Random(0)
    prompts = []
    for _ in range(200 // step):
        ids = demo.encode(numbers.choice(LANGUAGES)["article"])
        start = numbers.randrange(len(ids) - 1)
        prompts.append(ids[start : start + numbers.randint(1, 12)])
    expected = guessed(demo, prompts, max_new_tokens=12)
    assert guessed(demo, prompts, max_new_tokens=12, draft_model="prompt-lookup") == expected
    options: dict[str, Any] = {"max_new_tokens": 12, "draft_model": demo_in_int8}
    assert guessed(demo, prompts[::4], **options) == expected[::4]


# --- how many hold --------------------------------------------------------------------------------


@pytest.mark.parametrize("draft_tokens", [1, 2, 5, 8, 16])
@pytest.mark.parametrize("new", [1, 2, NEW])
def test_passes_when_all_hold(
    model: Bloom, drafts: dict[str, Any], new: int, draft_tokens: int
) -> None:
    generation = model.generate(
        PROMPT, max_new_tokens=new, draft_model=drafts["equal"], draft_tokens=draft_tokens
    )
    list(generation)
    passes = 1 + -(-(new - 1) // (draft_tokens + 1))  # the prompt's pass guesses nothing
    assert generation.stats.passes == passes
    assert generation.stats.tokens_per_pass == pytest.approx(new / passes)


def test_passes_when_none_holds(
    model: Bloom, drafts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass for each token, and after the first of them a single guess."""
    passes = watch_passes(monkeypatch)
    generation = model.generate(PROMPT, max_new_tokens=NEW, draft_model=drafts["always wrong"])
    list(generation)
    assert (generation.stats.passes, generation.stats.tokens_per_pass) == (NEW, 1)
    fed = [len(one.fed[0]) for one in passes if one.model is model.model]
    assert fed == [len(PROMPT), 9, *[2] * (NEW - 3), 1]


def copier() -> tuple[Checkpoint, list[int]]:
    """A model without attention whose every token has one that follows it, and a long cycle."""
    result = Checkpoint(heads=2, hidden=64, lm_head="different", config={"eos_token_id": None})
    for name, tensor in result.tensors.items():
        if "dense" in name or name.endswith("bias"):
            tensor[:] = 0
        elif "layernorm" in name or "ln_f" in name:
            tensor[:] = 1
    cycle = np.random.default_rng(0).permutation(np.arange(4, 44))
    embeddings = result.tensors["word_embeddings.weight"]
    result.tensors["lm_head.weight"][:] = 0
    result.tensors["lm_head.weight"][np.roll(cycle, -1)] = embeddings[cycle]
    return result, cycle.tolist()


def test_looking_up_a_text_that_repeats_itself(opened: Opened) -> None:
    checkpoint, cycle = copier()
    model = opened(checkpoint)
    generation = model.generate(cycle * 2, max_new_tokens=100, draft_model="prompt-lookup")
    list(generation)
    assert generation.token_ids == (cycle * 3)[:100]
    assert generation.stats.passes == 1 + 99 // 9
    unseen = model.generate(cycle[:20], max_new_tokens=20, draft_model="prompt-lookup")
    list(unseen)
    assert (unseen.token_ids, unseen.stats.passes) == (cycle[20:], 20)


@pytest.mark.parametrize(
    ("ids", "count", "guess"),
    [
        ([7, 7], 5, [7] * 5),
        ([9, 4, 5, 4, 5], 5, [4, 5, 4, 5, 4]),
        ([1, 2, 3, 1, 2, 3], 2, [1, 2]),
        ([1, 2, 3, 4, 1, 2], 7, [3, 4, 1, 2, 3, 4, 1]),
        ([1, 2, 3, 4, 5, 6, 1, 2], 3, [3, 4, 5]),
        ([1, 2, 3], 4, []),
        ([1], 4, []),
    ],
)
def test_what_is_looked_up(ids: list[int], count: int, guess: list[int]) -> None:
    """A text that repeats itself is taken to go on so, however short what it repeats."""
    draft = PromptLookup().propose(ids, count, np.random.default_rng(0))
    assert (draft.ids, draft.distributions) == (guess, [None] * len(guess))


def test_tokens_per_pass_of_the_demo_model(
    demo: Bloom, demo_in_int8: Bloom, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    """Article 1 in every fourth language, or all, with a copy of the model in int8; and where it
    says it once more, with what it has said before."""
    some = LANGUAGES[::step]
    openings = [language["opening"] for language in some]
    generations = demo.generate_batch(openings, max_new_tokens=300, draft_model=demo_in_int8)
    tokens = passes = 0
    for language, generation in zip(some, generations, strict=True):
        list(generation)
        assert language["opening"] + generation.text == language["article"]
        tokens, passes = tokens + len(generation.token_ids), passes + generation.stats.passes
    repeated = [0, 0]
    again = [f"{language['article']}</s>{language['opening']}" for language in some]
    looked_up = demo.generate_batch(again, max_new_tokens=300, draft_model="prompt-lookup")
    for language, generation in zip(some, looked_up, strict=True):
        list(generation)
        if language["opening"] + generation.text == language["article"]:
            repeated[0] += len(generation.token_ids)
            repeated[1] += generation.stats.passes
    with capsys.disabled():
        print(f"\n{tokens / passes:.2f} tokens a pass with a draft in int8")
        print(f"{repeated[0] / repeated[1]:.2f} with what was said before")
    assert tokens / passes >= 4
    assert repeated[0] / repeated[1] >= 3


# --- cut short ------------------------------------------------------------------------------------

PACKAGE = Path(numpy_bloom.__file__).parent
LOOP = [PACKAGE / "generation" / name for name in ("batch.py", "drafts.py", "sampling.py")]


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "seed": 1}])
def test_going_on_after_ctrl_c(
    model: Bloom, drafts: dict[str, Any], step: int, options: dict[str, Any]
) -> None:
    """Whether it came while one guesses, or while guesses are verified."""
    options |= {"draft_model": drafts["another"], "draft_tokens": 4, "max_new_tokens": 6}
    expected = guessed(model, [PROMPT], **options)
    generation = model.generate(PROMPT, **options)
    with Interrupt(0, LOOP) as undisturbed:
        list(generation)
    interrupted = 0
    for after in range(1, undisturbed.lines, 2 * step):
        generation = model.generate(PROMPT, **options)
        with pytest.raises(KeyboardInterrupt), Interrupt(after, LOOP):
            list(generation)
        interrupted += 1
        list(generation)
        assert [said(generation)] == expected
    assert interrupted > 10
