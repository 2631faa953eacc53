"""From ids to text: whole characters, stop strings wherever the tokens break, nothing lost."""

import random
from collections.abc import Sequence

import pytest
from support.checkpoints import EOS, FIRST_BYTE, VOCAB_SIZE, byte_ids, byte_tokenizer

from numpy_bloom.errors import NumpyBloomError, OptionError
from numpy_bloom.generation.text import TextStream

TEXTS = [
    "plain",
    "世界人权宣言",
    "a😀b👩‍👩‍👧",
    "सभी मनुष्यों",
    "அனைத்து",
    "é\u0301 «ñ»\n\tß",
    "\ufffd!",
]

# Merged tokens: `OP`, one that ends within a character, and the two halves of 中 both ways.
MERGES = [(b"O", b"P"), (b"P", b"\xe4"), (b"\xb8", b"\xad"), (b"\xe4", b"\xb8")]
TOKENIZER = byte_tokenizer(MERGES)
OP, P_AND_START, MIDDLE_AND_END, START_AND_MIDDLE = range(FIRST_BYTE + 256, FIRST_BYTE + 260)


def run(ids: Sequence[int], stop: Sequence[str] = ()) -> tuple[list[str], bool]:
    """The text of each token, then what `finish` adds; whether a stop string ended it."""
    stream = TextStream(TOKENIZER, stop)
    pieces = []
    for token_id in ids:
        pieces.append(stream.step(token_id))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream.stopped


def cut(text: str, stop: Sequence[str]) -> str:
    """Slow reference: go on character by character; stop before the string that ended first."""
    for end in range(len(text) + 1):
        if starts := [end - len(s) for s in stop if text[:end].endswith(s)]:
            return text[: min(starts)]
    return text


@pytest.mark.parametrize("text", TEXTS)
def test_characters_are_never_split(text: str) -> None:
    pieces, stopped = run(byte_ids(text))
    assert not stopped
    assert "".join(pieces) == text
    # A byte that does not end a character gives nothing; U+FFFD itself cannot be told from half
    # a character and may come late.
    if "\ufffd" not in text:
        ends = [len(text[: i + 1].encode()) - 1 for i in range(len(text))]
        expected = dict(zip(ends, text, strict=True))
        assert pieces == [expected.get(i, "") for i in range(len(byte_ids(text)))] + [""]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\xe4", ["a", "", "\ufffd"]),
        (b"a\xe4\xb8", ["a", "", "", "\ufffd"]),
        (b"\xf0\x9f\x98", ["", "", "", "\ufffd"]),
        (b"\xe4b", ["", "\ufffdb", ""]),
        (b"\x80\x80b", ["", "", "\ufffd\ufffdb", ""]),
        (b"", [""]),
    ],
)
def test_unfinished_characters(content: bytes, expected: list[str]) -> None:
    assert run(byte_ids(content))[0] == expected


def test_character_split_across_merged_tokens() -> None:
    ids = [*byte_ids("a"), P_AND_START, MIDDLE_AND_END, START_AND_MIDDLE, *byte_ids(b"\xad")]
    assert "".join(run(ids)[0]) == "aP中中"


def test_ids_without_text() -> None:
    last = VOCAB_SIZE - 1
    for silent in (last, EOS, 0, 1, 3):
        ids = [
            silent,
            *byte_ids("a"),
            silent,
            *byte_ids("中")[:2],
            silent,
            *byte_ids("中")[2:],
            silent,
        ]
        pieces, _ = run(ids)
        assert "".join(pieces) == "a中"
        assert pieces[0] == pieces[2] == ""
    assert run([last])[0] == ["", ""]


STOPS = [
    ("one end", ["end"]),
    ("one end two end", ["end"]),
    ("no such thing", ["end"]),
    ("the en", ["end"]),
    ("aaab", ["aab"]),
    ("ababac", ["abac"]),
    ("xabcd", ["abcd", "bc"]),
    ("xabcd", ["bcx", "abcd"]),
    ("xab", ["b", "ab"]),
    ("xabx", ["abc", "bx"]),
    ("enen", ["end", "n"]),
    ("中文结束", ["结"]),
    ("中文结", ["结束"]),
    ("😀😁", ["😁"]),
    ("end", ["end"]),
    ("a\n\nb", ["\n\n"]),
]


@pytest.mark.parametrize(("text", "stop"), STOPS)
def test_stop_strings(text: str, stop: list[str]) -> None:
    pieces, stopped = run(byte_ids(text), stop)
    assert "".join(pieces) == cut(text, stop)
    assert stopped == (cut(text, stop) != text)


def test_stop_text_is_held_back_until_it_is_certain() -> None:
    assert run(byte_ids("an enemy"), ["end"])[0] == ["a", "n", " ", "", "", "en", "em", "y", ""]
    assert run(byte_ids("a en"), ["end"])[0] == ["a", " ", "", "", "en"]
    assert run(byte_ids("a end"), ["end"])[0] == ["a", " ", "", "", "", ""]


def test_stop_within_a_token() -> None:
    assert run([*byte_ids("ST"), OP], ["TO"]) == (["S", "", "", ""], True)
    # The stop that ends first counts, as if the token were two.
    assert run([*byte_ids("ST"), OP], ["TOP", "O"]) == (["S", "", "T", ""], True)


@pytest.mark.parametrize("rest", [[], [MIDDLE_AND_END], [MIDDLE_AND_END, *byte_ids("more")]])
def test_stop_in_a_token_that_ends_within_a_character(rest: list[int]) -> None:
    pieces, stopped = run([*byte_ids("a STO"), P_AND_START, *rest], ["STOP"])
    assert ("".join(pieces), stopped) == ("a ", True)


def test_random_tokens_and_stop_strings() -> None:
    """Whatever the tokens, the pieces add up to the decoded whole, cut at the first stop."""
    source = random.Random(0)
    words = ["a", "ab", "é", "中", "😀", "हि", " ", "OP", "STOP"]
    for _ in range(1000):
        ids: list[int] = []
        for _ in range(source.randrange(1, 8)):
            ids += byte_ids(source.choice(words))
            ids += [source.randrange(VOCAB_SIZE)] * source.randrange(2)
        stop = source.sample([*words, "O", "b中", "\ufffda"], source.randrange(3))
        pieces, stopped = run(ids, stop)
        whole = TOKENIZER.decode(ids)
        assert "".join(pieces) == cut(whole, stop)
        assert stopped == (cut(whole, stop) != whole)


def test_empty_stop() -> None:
    with pytest.raises(OptionError, match="stop text is empty"):
        TextStream(TOKENIZER, ["a", ""])


def test_without_tokenizer() -> None:
    stream = TextStream(None)
    assert [stream.step(5), stream.finish(), stream.stopped] == ["", "", False]
    with pytest.raises(NumpyBloomError, match="needs a tokenizer"):
        TextStream(None, ["a"])
