"""Texts that are kept in a file: what a later run with the same beginning takes over."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.dials import EVERYTHING, in_many_pieces, least_memory, model_folder
from support.dials import NEW as FEW
from support.dials import PROMPT as LONG
from support.prompt_caches import ids_of, said

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.errors import OptionError
from numpy_bloom.generation.prompt_cache_file import PromptCacheFile
from numpy_bloom.model.cache import KVCache
from numpy_bloom.running.memory import Needs

PROMPT = LONG[:9]
NEW = 12


def test_a_file_changes_nothing(endless_model: Bloom, text_file: Path) -> None:
    expected = said(endless_model.generate(PROMPT, max_new_tokens=NEW))
    assert (
        said(endless_model.generate(PROMPT, max_new_tokens=NEW, prompt_cache=text_file)) == expected
    )


def test_a_second_run_computes_the_new_tokens_only(
    endless_model: Bloom, text_file: Path, fed: list[int]
) -> None:
    expected = ids_of(endless_model.generate(PROMPT, max_new_tokens=NEW))
    del fed[:]
    list(endless_model.generate(PROMPT, max_new_tokens=3, prompt_cache=text_file))
    assert fed == [len(PROMPT), 1, 1]
    del fed[:]
    assert (
        ids_of(endless_model.generate(PROMPT, max_new_tokens=NEW, prompt_cache=str(text_file)))
        == expected
    )
    assert fed == [1] * NEW


OTHER = [9, 8, 7]
COMMON = [
    ("the same", PROMPT, len(PROMPT) - 1),
    ("nothing", OTHER, 0),
    ("a beginning", PROMPT[:4] + OTHER, 4),
    ("all and more", PROMPT + OTHER, len(PROMPT)),
    ("a shorter one", PROMPT[:4], 3),
    ("one token", PROMPT[:1], 0),
]


@pytest.mark.parametrize(("_name", "prompt", "common"), COMMON)
def test_the_longest_common_beginning(
    endless_model: Bloom,
    text_file: Path,
    fed: list[int],
    _name: str,
    prompt: list[int],
    common: int,
) -> None:
    expected = ids_of(endless_model.generate(prompt, max_new_tokens=NEW))
    list(endless_model.generate(PROMPT, max_new_tokens=1, prompt_cache=text_file))
    del fed[:]
    assert (
        ids_of(endless_model.generate(prompt, max_new_tokens=NEW, prompt_cache=text_file))
        == expected
    )
    assert fed[0] == len(prompt) - common
    assert (
        load_file(text_file)["tokens"][:, 0].tolist() == prompt + expected
    )  # and no longer the first


def test_new_tokens_belong_to_what_is_common(
    endless_model: Bloom, text_file: Path, fed: list[int]
) -> None:
    """A conversation: each prompt is the text so far and something more."""
    first = ids_of(endless_model.generate(PROMPT, max_new_tokens=NEW, prompt_cache=text_file))
    prompt = PROMPT + first + OTHER
    expected = ids_of(endless_model.generate(prompt, max_new_tokens=NEW))
    del fed[:]
    assert (
        ids_of(endless_model.generate(prompt, max_new_tokens=NEW, prompt_cache=text_file))
        == expected
    )
    assert fed[0] == 1 + len(OTHER)  # the last new token was not fed back


def test_an_interrupted_text_is_taken_over_as_well(
    endless_model: Bloom, text_file: Path, fed: list[int]
) -> None:
    generation = endless_model.generate(PROMPT, max_new_tokens=NEW, prompt_cache=text_file)
    first = [next(generation).id for _ in range(3)]
    del fed[:]
    list(endless_model.generate(PROMPT + first + OTHER, max_new_tokens=1, prompt_cache=text_file))
    assert fed == [1 + len(OTHER)]


def test_what_lies_in_the_file(endless_model: Bloom, text_file: Path) -> None:
    new = said(endless_model.generate(PROMPT, max_new_tokens=NEW, prompt_cache=text_file))
    arrays = load_file(text_file)
    text = PROMPT + [token_id for token_id, _, _ in new]
    assert arrays["tokens"][:, 0].tolist() == text
    logprobs = arrays["tokens"][:, 1].view(np.float64)
    assert logprobs.tolist() == [0.0] * len(PROMPT) + [logprob for _, logprob, _ in new]
    (cache,) = endless_model.model.prepare(Needs([len(text)], pass_tokens=len(text), logit_rows=1))
    endless_model.model.run([np.array(text[:-1])], [cache])
    for place in range(len(text) - 1):
        np.testing.assert_allclose(arrays["keys_values"][place], cache.token(place), atol=1e-5)
    assert not arrays["keys_values"][-1].any()


def test_streamed(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than one pass of weights is read before the first token."""
    in_many_pieces(monkeypatch)
    folder = model_folder(tmp_path)
    with numpy_bloom.load(folder, memory=least_memory(folder, 1), threads=1) as model:
        expected = ids_of(model.generate(LONG, max_new_tokens=FEW, prompt_cache=text_file))
        generation = model.generate(LONG, max_new_tokens=FEW, prompt_cache=text_file)
        first = next(generation)
        assert 0 < generation.stats.weight_bytes_read <= model.model.stream.nbytes
        assert [first.id, *ids_of(generation)] == expected


def test_a_kept_prompt_needs_no_memory_for_a_pass_over_it(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_many_pieces(monkeypatch)
    folder, prompt = model_folder(tmp_path), LONG * 10
    with numpy_bloom.load(folder, memory=EVERYTHING, threads=1) as model:
        list(model.generate(prompt, max_new_tokens=1, prompt_cache=text_file))
        needed = model.model.memory_for_all
        list(model.generate(prompt, max_new_tokens=1, prompt_cache=text_file))
        assert model.model.memory_for_all < needed - 100_000


def test_reading_takes_the_memory_of_a_token(endless_model: Bloom, text_file: Path) -> None:
    prompt = PROMPT * 100
    list(endless_model.generate(prompt, max_new_tokens=1, prompt_cache=text_file))
    cache = KVCache(endless_model.config, len(prompt))
    kept = PromptCacheFile.open(text_file, write=False, ignore_damaged=False)
    tracemalloc.start()
    kept.load(cache, len(prompt) - 1, ignore_damaged=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cache.length == len(prompt) - 1
    assert peak < 4 * KVCache.nbytes(endless_model.config, 1) + 10_000


def test_one_text_only(endless_model: Bloom, text_file: Path) -> None:
    with pytest.raises(OptionError, match="prompt_cache is for one text, there are 2"):
        endless_model.generate_batch([PROMPT, PROMPT], prompt_cache=text_file)
    with pytest.raises(OptionError, match="prompt_cache is for one text, there are 3"):
        endless_model.generate_batch(
            [PROMPT], num_samples=3, temperature=1.0, prompt_cache=text_file
        )
    assert not text_file.exists()


def test_a_link_stays_a_link(endless_model: Bloom, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "text")
    list(endless_model.generate(PROMPT, max_new_tokens=2, prompt_cache=link))
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "text"]
    assert len(endless_model.resume(link).token_ids) == 2
