"""The loop around the model, against full passes without a cache."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import EOS, VOCAB_SIZE, Checkpoint, byte_ids
from support.conversions import converted

import numpy_bloom
from numpy_bloom.errors import NumpyBloomError, OptionError

PROMPT = byte_ids("Todos los")
NEW = 12
# With tied embeddings a random model says one token for ever.
RANDOM: dict[str, Any] = {"heads": 3, "hidden": 24, "lm_head": "different"}
ENDLESS = {"eos_token_id": None}


def opened(checkpoint: Checkpoint, folder: Path) -> numpy_bloom.Bloom:
    return numpy_bloom.load(converted(checkpoint, folder))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[numpy_bloom.Bloom]:
    """A model that never ends a text by itself."""
    checkpoint = Checkpoint(**RANDOM, config=ENDLESS)
    with opened(checkpoint, tmp_path_factory.mktemp("endless")) as model:
        yield model


@pytest.fixture(scope="module")
def greedy(model: numpy_bloom.Bloom) -> list[int]:
    """The greedy continuation, from a full pass over the whole text for each token."""
    ids = list(PROMPT)
    for _ in range(NEW):
        ids.append(int(model(ids)[-1].argmax()))
    return ids[len(PROMPT) :]


def log_softmax(logits: Any, token_id: int) -> float:
    wide = np.asarray(logits, dtype=np.float64)
    return float(wide[token_id] - wide.max() - np.log(np.exp(wide - wide.max()).sum()))


def test_greedy(model: numpy_bloom.Bloom, greedy: list[int]) -> None:
    tokens = list(model.generate(PROMPT, max_new_tokens=NEW))
    assert [token.id for token in tokens] == greedy
    assert len(set(greedy)) > 3  # a text that says something about the choice


def test_what_a_generation_tells(model: numpy_bloom.Bloom, greedy: list[int]) -> None:
    generation = model.generate(PROMPT, max_new_tokens=NEW)
    assert (generation.finish_reason, generation.token_ids, generation.text) == (None, [], "")
    tokens = list(generation)
    assert generation.prompt_token_ids == PROMPT
    assert generation.token_ids == greedy
    assert generation.finish_reason == "length"
    assert generation.text == "".join(token.text for token in tokens) == model.decode(greedy)
    assert next(generation, None) is None
    assert generation.stats.passes == NEW  # the prompt is one, and gives the first token
    assert generation.stats.prefill_seconds > 0
    assert generation.stats.decode_seconds > 0
    rate = (NEW - 1) / generation.stats.decode_seconds
    assert generation.stats.tokens_per_second == pytest.approx(rate)
    assert generation.stats.weight_bytes_read >= 0
    assert generation.stats.peak_memory_bytes > 1_000_000


def test_logprobs(model: numpy_bloom.Bloom) -> None:
    """Of the model itself, whatever the options do to the distribution."""
    options: dict[str, Any] = {"top_k": 3, "temperature": 2.0, "repetition_penalty": 1.5, "seed": 1}
    for settings in ({}, options):
        tokens = list(model.generate(PROMPT, max_new_tokens=4, **settings))
        logits = model(PROMPT + [token.id for token in tokens])
        for token, scores in zip(tokens, logits[len(PROMPT) - 1 :], strict=False):
            assert token.logprob == pytest.approx(log_softmax(scores, token.id), abs=1e-4)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_max_new_tokens(model: numpy_bloom.Bloom, greedy: list[int], count: int) -> None:
    generation = model.generate(PROMPT, max_new_tokens=count)
    assert [token.id for token in generation] == greedy[:count]
    assert generation.stats.passes == count
    if count == 1:
        assert generation.stats.tokens_per_second == 0


@pytest.mark.parametrize("in_generation_config", [True, False])
def test_end_of_text(tmp_path: Path, greedy: list[int], in_generation_config: bool) -> None:
    # The end is the first token that is new in the text, so that it comes in the middle.
    place = next(i for i in range(2, NEW) if greedy[i] not in greedy[:i])
    ends = [EOS, greedy[place]]
    checkpoint = Checkpoint(**RANDOM)
    if in_generation_config:
        checkpoint.generation_config = {"eos_token_id": ends}
    else:
        checkpoint.config["eos_token_id"] = ends
    with opened(checkpoint, tmp_path) as model:
        generation = model.generate(PROMPT, max_new_tokens=NEW)
        tokens = list(generation)
    assert [token.id for token in tokens] == generation.token_ids == greedy[: place + 1]
    assert generation.finish_reason == "eos"
    assert generation.text == model.decode(greedy[:place])  # the end has no text
    assert generation.stats.passes == place + 1


def test_end_of_text_comes_before_length(tmp_path: Path, greedy: list[int]) -> None:
    checkpoint = Checkpoint(**RANDOM, config={"eos_token_id": greedy[0]})
    with opened(checkpoint, tmp_path) as model:
        generation = model.generate(PROMPT, max_new_tokens=1)
        assert [token.text for token in generation] == [""]
        assert generation.finish_reason == "eos"


def test_stop(model: numpy_bloom.Bloom) -> None:
    seen = model.generate(PROMPT, max_new_tokens=NEW)
    texts = [token.text for token in seen]
    stop = next(text for text in texts[2:] if text.strip("\ufffd"))
    generation = model.generate(PROMPT, max_new_tokens=NEW, stop=["never there", stop])
    tokens = list(generation)
    assert generation.finish_reason == "stop"
    assert generation.text == seen.text[: seen.text.index(stop)]
    assert generation.text == "".join(token.text for token in tokens)
    assert len(tokens) <= NEW


def test_text_held_back_for_a_stop_is_given_at_the_end(model: numpy_bloom.Bloom) -> None:
    plain = model.generate(PROMPT, max_new_tokens=3)
    list(plain)
    generation = model.generate(PROMPT, max_new_tokens=3, stop=[plain.text + "never"])
    assert [token.text for token in generation] == ["", "", plain.text]
    assert (generation.text, generation.finish_reason) == (plain.text, "length")


def test_seed(model: numpy_bloom.Bloom) -> None:
    def sampled(seed: int | None) -> list[int]:
        options: dict[str, Any] = {"temperature": 3.0, "max_new_tokens": NEW, "seed": seed}
        return [token.id for token in model.generate(PROMPT, **options)]

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    assert sampled(None) != sampled(None)  # alike once in 10^20 times


def test_penalty_counts_prompt_and_new_tokens(model: numpy_bloom.Bloom) -> None:
    """So strong a penalty never lets a token come again as long as another has a logit above 0."""
    options: dict[str, Any] = {"max_new_tokens": NEW, "repetition_penalty": 1e9}
    ids = [token.id for token in model.generate(PROMPT, **options)]
    assert len(set(ids)) == NEW
    assert not set(ids) & set(PROMPT)


def test_leaving_half_way(model: numpy_bloom.Bloom, greedy: list[int]) -> None:
    generation = model.generate(PROMPT, max_new_tokens=NEW)
    for _ in itertools.islice(generation, 3):
        pass
    assert generation.token_ids == greedy[:3]
    assert generation.finish_reason is None
    assert generation.stats.passes == 3  # nothing is computed before it is asked for
    other = model.generate(PROMPT, max_new_tokens=2)
    assert [token.id for token in other] == greedy[:2]
    assert [token.id for token in generation] == greedy[3:]  # and it goes on where it was
    del generation


def test_two_at_a_time(model: numpy_bloom.Bloom, greedy: list[int]) -> None:
    first = model.generate(PROMPT, max_new_tokens=5)
    second = model.generate(PROMPT[:4], max_new_tokens=5)
    alone = [token.id for token in model.generate(PROMPT[:4], max_new_tokens=5)]
    pairs = [(a.id, b.id) for a, b in zip(first, second, strict=True)]
    assert pairs == list(zip(greedy[:5], alone, strict=True))


def as_list(ids: list[int]) -> Any:
    return ids


@pytest.mark.parametrize("form", [as_list, tuple, np.array, lambda ids: np.array(ids, np.uint16)])
def test_forms_of_prompt(
    model: numpy_bloom.Bloom, greedy: list[int], form: Callable[[list[int]], Any]
) -> None:
    prompt = form(PROMPT)
    generation = model.generate(prompt, max_new_tokens=3)
    assert [token.id for token in generation] == greedy[:3]
    assert list(prompt) == PROMPT  # the caller's own is not touched
    assert generation.prompt_token_ids is not prompt


def test_text_as_prompt(model: numpy_bloom.Bloom) -> None:
    text = "Todos </s>nacen"
    ids = model.encode(text)
    assert ids.count(EOS) == 1
    assert ids != byte_ids(text)  # merged
    assert model.decode(ids) == text
    generations = [model.generate(prompt, max_new_tokens=4) for prompt in (text, ids)]
    assert [token.id for token in generations[0]] == [token.id for token in generations[1]]
    assert generations[0].prompt_token_ids == ids


@pytest.mark.parametrize("prompt", ["", [], np.array([], dtype=np.int64)])
def test_empty_prompt(model: numpy_bloom.Bloom, prompt: Any) -> None:
    with pytest.raises(NumpyBloomError, match="empty"):
        model.generate(prompt)


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([5, VOCAB_SIZE], f"token id {VOCAB_SIZE} is out of range.* 0 to {VOCAB_SIZE - 1}"),
        ([5, -1], "token id -1 is out of range"),
        ([2**63], "token id 9223372036854775808 is out of range"),
        ([1.0, 2.0], "must be integers, got float64"),
        (["5"], "must be integers"),
        ([[5, 6]], "1-D"),
        (5, "1-D"),
        ([[5], [6, 7]], "1-D"),
    ],
)
def test_wrong_ids(model: numpy_bloom.Bloom, ids: Any, told: str) -> None:
    for use in (model, model.generate):
        with pytest.raises(NumpyBloomError, match=told):
            use(ids)


def test_last_id_is_in_range(model: numpy_bloom.Bloom) -> None:
    assert model([VOCAB_SIZE - 1, 0]).shape == (2, VOCAB_SIZE)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected a value in [1, inf), whole"),
        ({"max_new_tokens": -3}, "max_new_tokens is -3; expected a value in [1, inf), whole"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; expected a value in [1, inf), whole"),
        ({"temperature": -1.0}, "temperature is -1.0; expected a value in [0, inf)"),
        ({"stop": [""]}, "stop text is empty"),
    ],
)
def test_options_out_of_range(model: numpy_bloom.Bloom, options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError) as error:  # at once, not when the first token is asked for
        model.generate(PROMPT, **options)
    assert told in str(error.value)


def test_output_that_is_not_finite(tmp_path: Path) -> None:
    checkpoint = Checkpoint(**RANDOM)
    checkpoint.tensors["lm_head.weight"][7] = 3e38
    checkpoint.tensors["ln_f.bias"][:] = 3e3
    with (
        opened(checkpoint, tmp_path) as model,
        pytest.raises(NumpyBloomError, match="not finite"),
    ):
        list(model.generate(PROMPT))


def test_without_tokenizer(tmp_path: Path, greedy: list[int]) -> None:
    checkpoint = Checkpoint(**RANDOM, config=ENDLESS, tokenizer=None)
    with opened(checkpoint, tmp_path) as model:
        generation = model.generate(PROMPT, max_new_tokens=3)
        assert [(token.id, token.text) for token in generation] == [(id_, "") for id_ in greedy[:3]]
        with pytest.raises(NumpyBloomError, match=r"no tokenizer\.json"):
            model.generate("text")
        with pytest.raises(NumpyBloomError, match="needs a tokenizer"):
            model.generate(PROMPT, stop=["a"])


def test_vocabulary_beyond_the_tokenizer(tmp_path: Path) -> None:
    """An id without text can be chosen, and is."""
    checkpoint = Checkpoint(**RANDOM, config=ENDLESS)
    silent = VOCAB_SIZE - 1
    head = checkpoint.tensors["lm_head.weight"]
    head[:] = 0
    checkpoint.tensors["ln_f.weight"][:] = 0
    head[silent] = checkpoint.tensors["ln_f.bias"]  # the one positive logit
    with opened(checkpoint, tmp_path) as model:
        generation = model.generate(PROMPT, max_new_tokens=3)
        assert [token.text for token in generation] == ["", "", ""]
        assert generation.token_ids == [silent] * 3


@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE, 10**12])
def test_what_is_no_token_has_no_text(model: numpy_bloom.Bloom, token_id: int) -> None:
    with pytest.raises(NumpyBloomError, match=rf"token id {token_id} is out of range"):
        model.decode([token_id])
    assert model.decode([]) == ""
