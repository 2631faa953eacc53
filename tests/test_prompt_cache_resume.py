"""Texts that are kept in a file: how they go on."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import Checkpoint, byte_ids
from support.conversions import converted
from support.prompt_caches import ENDLESS, ids_of, said

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.errors import NumpyBloomError, OptionError

PROMPT = byte_ids("Todos los")
NEW = 12
OTHER = [9, 8, 7]
SAMPLED: dict[str, Any] = {"temperature": 1.5, "top_k": 20}


@pytest.mark.parametrize("taken", [0, 1, 2, NEW - 1, NEW])
@pytest.mark.parametrize("options", [{}, SAMPLED, {"repetition_penalty": 1.7}])
@pytest.mark.parametrize("draft_model", [None, "prompt-lookup"])
def test_resume(
    endless_model: Bloom,
    text_file: Path,
    taken: int,
    options: dict[str, Any],
    draft_model: str | None,
) -> None:
    """To the bit, though the seed was drawn and is in the file alone."""
    prompt = PROMPT + PROMPT  # so that there is something to look up
    generation = endless_model.generate(
        prompt, max_new_tokens=NEW, prompt_cache=text_file, draft_model=draft_model, **options
    )
    begun = [next(generation) for _ in range(taken)]
    content = text_file.read_bytes()
    expected = [(token.id, token.logprob, token.text) for token in begun] + said(generation)
    ended = text_file.read_bytes()
    text_file.write_bytes(content)  # as it was, when the run was cut off
    resumed = endless_model.resume(text_file)
    assert len(resumed.token_ids) >= taken
    assert said(resumed) == expected
    assert resumed.prompt_token_ids == prompt
    assert resumed.finish_reason == generation.finish_reason == "length"
    assert resumed.text == generation.text
    assert text_file.read_bytes() == ended


def test_speed_of_a_text_that_goes_on(endless_model: Bloom, text_file: Path) -> None:
    """Its first pass may give several tokens, which are not those of the passes after it."""
    generation = endless_model.generate(
        PROMPT, max_new_tokens=40, prompt_cache=text_file, draft_model=endless_model
    )
    next(generation)
    del generation
    resumed = endless_model.resume(text_file, draft_model=endless_model)
    restored = len(resumed.token_ids)
    for _ in range(restored + 1):  # a token, and all that come with it
        next(resumed)
    first = len(resumed.token_ids) - restored
    assert first > 1
    list(resumed)
    rate = (40 - restored - first) / resumed.stats.decode_seconds
    assert resumed.stats.tokens_per_second == pytest.approx(rate)


def test_resume_with_a_draft_model(endless_model: Bloom, text_file: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(heads=3, hidden=24, **ENDLESS)
    for name, array in checkpoint.tensors.items():
        if "mlp" in name:
            array[...] *= np.float32(0.7)  # so that some guesses hold, and some do not
    with numpy_bloom.load(converted(checkpoint, tmp_path)) as draft:
        options: dict[str, Any] = {"draft_model": draft, "draft_tokens": 3, "seed": 5, **SAMPLED}
        expected = ids_of(endless_model.generate(PROMPT, max_new_tokens=40, **options))
        generation = endless_model.generate(
            PROMPT, max_new_tokens=40, prompt_cache=text_file, **options
        )
        for _ in range(9):
            next(generation)
        with pytest.raises(OptionError, match="begun with a draft model; give it again"):
            endless_model.resume(text_file)
        with pytest.raises(OptionError, match="draft_model is 'prompt-lookup', but"):
            endless_model.resume(text_file, draft_model="prompt-lookup")
        resumed = endless_model.resume(text_file, draft_model=draft)
        assert ids_of(resumed) == expected
        assert 1 < resumed.stats.tokens_per_pass < 4


def test_resume_feeds_the_last_token_only(
    endless_model: Bloom, text_file: Path, fed: list[int]
) -> None:
    generation = endless_model.generate(PROMPT, max_new_tokens=NEW, prompt_cache=text_file)
    for _ in range(4):
        next(generation)
    del fed[:]
    resumed = endless_model.resume(text_file)
    list(resumed)
    assert fed == [1] * (NEW - 4)
    assert resumed.stats.passes == NEW - 4
    assert resumed.stats.tokens_per_pass == 1
    del fed[:]
    assert len(list(endless_model.resume(text_file))) == NEW
    assert fed == []


def test_resume_ends_at_a_stop_text(endless_model: Bloom, text_file: Path) -> None:
    text = endless_model.generate(PROMPT, max_new_tokens=NEW)
    list(text)
    stop = text.text[5:8]
    generation = endless_model.generate(
        PROMPT, max_new_tokens=NEW, prompt_cache=text_file, stop=stop
    )
    next(generation)
    resumed = endless_model.resume(text_file)
    list(resumed)
    list(generation)
    assert (resumed.finish_reason, resumed.text) == ("stop", generation.text)
    again = endless_model.resume(text_file, stop=(stop,))
    list(again)
    assert (again.finish_reason, again.text) == ("stop", generation.text)


def test_resume_twice(endless_model: Bloom, text_file: Path) -> None:
    expected = said(endless_model.generate(PROMPT, max_new_tokens=NEW))
    generation = endless_model.generate(PROMPT, max_new_tokens=NEW, prompt_cache=text_file)
    for count in range(NEW):
        next(generation)
        generation = endless_model.resume(text_file)
        assert len(generation.token_ids) == count + 1
        for _ in range(count + 1):
            next(generation)
    assert said(endless_model.resume(text_file)) == expected


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": 2.0}, "temperature is 2.0, but the text of .* was begun with 1.5"),
        ({"seed": 4}, "seed is 4, but"),
        ({"max_new_tokens": 5}, "max_new_tokens is 5, but .* 12; leave it out"),
        ({"stop": "a"}, r"stop is \['a'\], but"),
        ({"draft_model": "prompt-lookup"}, "draft_model is 'prompt-lookup', but"),
        ({"num_samples": 2}, "num_samples is no option of a text that goes on"),
        ({"prompt": OTHER}, "holds another prompt"),
        ({"prompt": []}, "prompt is empty"),
    ],
)
def test_options_that_contradict(
    endless_model: Bloom, text_file: Path, options: dict[str, Any], told: str
) -> None:
    list(
        endless_model.generate(
            PROMPT, max_new_tokens=NEW, prompt_cache=text_file, **SAMPLED, seed=3
        )
    )
    with pytest.raises(NumpyBloomError, match=told):
        endless_model.resume(text_file, **options)
    agreeing: dict[str, Any] = {"prompt": PROMPT, "max_new_tokens": NEW, "seed": 3, "stop": ()}
    endless_model.resume(text_file, **agreeing, **SAMPLED)


def test_a_file_that_another_process_writes(endless_model: Bloom, text_file: Path) -> None:
    generation = endless_model.generate(PROMPT, max_new_tokens=NEW, prompt_cache=text_file)
    next(generation)
    code = "import numpy_bloom, sys\nm = numpy_bloom.load(sys.argv[1])\n" + "\n".join(
        f"try: {call}\nexcept numpy_bloom.NumpyBloomError as error: print(error)"
        for call in ("m.resume(sys.argv[2])", "m.generate([5], prompt_cache=sys.argv[2])")
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(endless_model._folder), str(text_file)],
        capture_output=True,
        text=True,
        check=True,
    )
    told = f"{text_file} is in use by another process; wait for it, or choose another file\n"
    assert (result.stdout, result.stderr) == (2 * told, "")
    assert len(list(generation)) == NEW - 1
