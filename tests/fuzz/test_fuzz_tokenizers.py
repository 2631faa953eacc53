"""Tokenizers of nothing but parts that are allowed: texts are split and put together again.

Or one line tells why not. What reads a tokenizer.json that is spoiled is in test_fuzz.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sandbox import run
from support.checkpoints import byte_tokenizer

from numpy_bloom.generation.text import TextStream
from numpy_bloom.tokenizer import EXPRESSIONS, SECTIONS, SEQUENCES, encode, read_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

ORIGINAL = json.loads(byte_tokenizer().to_str())
BEHAVIORS = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
A, B = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
END = {"SpecialToken": {"id": "</s>", "type_id": 1}}
SETTINGS = ["invert", "individual_digits", "add_prefix_space", "trim_offsets", "use_regex"]


@st.composite
def allowed_parts(draw: st.DrawFn, section: str, inside: str) -> dict[str, Any]:
    """A sequence of parts that a tokenizer may have, their settings drawn."""
    parts: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(0, 5))):
        part: dict[str, Any] = {"type": draw(st.sampled_from(sorted(SECTIONS[section])))}
        if part["type"] == "Split":
            text = {"String": draw(st.text(max_size=3))}
            expression = {"Regex": draw(st.sampled_from(EXPRESSIONS[1:]))}
            part["pattern"] = draw(st.sampled_from([text, expression]))
        if part["type"] in ("Split", "Punctuation"):
            part["behavior"] = draw(st.sampled_from(BEHAVIORS))
        if part["type"] == "TemplateProcessing":
            end = {"id": "</s>", "ids": [draw(st.integers(0, 300))], "tokens": ["</s>"]}
            single = draw(st.lists(st.sampled_from([A, END]), max_size=3))
            part |= {"single": single, "pair": [A, B], "special_tokens": {"</s>": end}}
        part |= {setting: draw(st.booleans()) for setting in SETTINGS}
        parts.append(part)
    return {"type": "Sequence", inside: parts}


ADDED = st.fixed_dictionaries(
    {"id": st.integers(0, 1000), "content": st.text(max_size=4)}
    | dict.fromkeys(["special", "normalized", "single_word", "lstrip", "rstrip"], st.booleans())
)


PLAIN = {"type": "ByteLevel", **dict.fromkeys(SETTINGS, False)}
SPELLED_TWICE = {
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [PLAIN, {**PLAIN, "add_prefix_space": True}],
    },
    "decoder": {"type": "Sequence", "decoders": [PLAIN, PLAIN]},
}


@example(rooms=SPELLED_TWICE, added=[], text="\U00010000")
@given(
    rooms=st.fixed_dictionaries(
        {
            section: allowed_parts(section, inside)
            for section, inside in zip(SECTIONS, SEQUENCES, strict=True)
        }
    ),
    added=st.lists(ADDED, max_size=3),
    text=st.text(max_size=50),
)
def test_tokenizer_of_allowed_parts(
    place: Path, rooms: dict[str, Any], added: list[Any], text: str
) -> None:
    content = json.dumps({**ORIGINAL, "added_tokens": added, **rooms})
    (place / "tokenizer.json").write_text(content)

    def there_and_back() -> None:
        tokenizer = read_tokenizer(place, 1000)
        assert tokenizer is not None
        stream = TextStream(tokenizer)
        for token in encode(tokenizer, text):
            stream.step(token)
        stream.finish()

    run(there_and_back)
