"""Prompt caches that are damaged: told in one line, and never another text."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.prompt_caches import BEGUN, NEW, PROMPT, again, ids_of

from numpy_bloom.bloom import Bloom
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.generation import prompt_cache, prompt_cache_layout

BEGINNING = prompt_cache_layout.BEGINNING


def told(model: Bloom, file: Path, what: str) -> None:
    """It is refused in one line, with the way out, and left as it is."""
    content = file.read_bytes()
    for run in (again, lambda model, file: ids_of(model.resume(file))):
        with pytest.raises(NumpyBloomError) as error:
            run(model, file)
        assert what in str(error.value)
        assert str(error.value).startswith(f"{file} is damaged: ")
        assert "--ignore-damaged-cache" in str(error.value)
        assert "\n" not in str(error.value)
    assert file.read_bytes() == content
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def flips(content: bytes) -> list[int]:
    """Some places; of the header all but the padding, and each record and checksum."""
    end = content.index(b" " * 50)
    start = 8 + int.from_bytes(content[:8], "little")
    return [*range(end), *range(end, start, 97), *range(start, len(content), 3)]


def test_a_flipped_bit(
    tiny_model: Bloom, begun_file: Path, tiny_text: list[int], step: int
) -> None:
    """Anywhere: it is refused, or it is where nobody reads."""
    whole = begun_file.read_bytes()
    refused = passed = 0
    for place in flips(whole)[::step]:
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        begun_file.write_bytes(content)
        try:
            assert ids_of(tiny_model.resume(begun_file)) == tiny_text
            passed += 1
        except NumpyBloomError as error:
            refused += 1
            assert str(error).startswith(f"{begun_file} is")
    slab = 2 * 2 * 8 * 4
    unread = (NEW - BEGUN + 1) * (slab + 8) + (NEW - BEGUN) * 32  # they are written first
    assert unread / 3 - 20 < passed * step <= unread / 3 + 20
    assert refused * step > 1000


def test_a_flipped_bit_is_ignored(
    tiny_model: Bloom, begun_file: Path, tiny_text: list[int], step: int
) -> None:
    """If that is asked for. A text cannot go on whose prompt is damaged, but it can begin."""
    whole = begun_file.read_bytes()
    random.seed(0)
    resumed = 0
    for place in random.sample(flips(whole), 120 // step):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        begun_file.write_bytes(content)
        try:
            assert ids_of(tiny_model.resume(begun_file, ignore_damaged_cache=True)) == tiny_text
            assert again(tiny_model, begun_file) == tiny_text  # and now it is whole
            resumed += 1
        except NumpyBloomError as error:
            assert str(error).startswith(f"{begun_file} is")
        begun_file.write_bytes(content)
        try:
            assert again(tiny_model, begun_file, ignore_damaged_cache=True) == tiny_text
            assert again(tiny_model, begun_file) == tiny_text
        except NumpyBloomError as error:
            assert "is no 'numpy-bloom kept text 1'; choose another file" in str(error)
            begun_file.write_bytes(whole)
    assert resumed > 60 // step


def test_what_is_damaged_is_cleared(tiny_model: Bloom, begun_file: Path) -> None:
    """Records beyond the damage may not be taken for those of a text that went another way."""
    content = bytearray(begun_file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    first, after = start + 32 * (len(PROMPT) + 2), start + 32 * (len(PROMPT) + NEW)
    assert any(content[first + 32 : after])
    content[first] ^= 1
    begun_file.write_bytes(content)
    resumed = tiny_model.resume(begun_file, ignore_damaged_cache=True)
    assert len(resumed.token_ids) == 2
    assert begun_file.read_bytes() == content[:first] + bytes(after - first) + content[after:]


def test_truncated(tiny_model: Bloom, begun_file: Path, tiny_text: list[int]) -> None:
    whole = begun_file.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for length in [*range(8 + len(BEGINNING), start, 331), *range(start, len(whole), 7)]:
        begun_file.write_bytes(whole[:length])
        told(tiny_model, begun_file, "")
    begun_file.write_bytes(whole + b"\0")
    told(tiny_model, begun_file, f"it has {len(whole) + 1:,} bytes, expected {len(whole):,}")
    begun_file.write_bytes(whole[:5000])
    with pytest.raises(NumpyBloomError, match=r"no text can go on from it, begin it anew$"):
        tiny_model.resume(begun_file, ignore_damaged_cache=True)
    assert again(tiny_model, begun_file, ignore_damaged_cache=True) == tiny_text
    assert again(tiny_model, begun_file) == tiny_text


def test_garbage(tiny_model: Bloom, begun_file: Path, tiny_text: list[int]) -> None:
    for rest in (b"", b"}}", b',"about":"[]"}}', b"[" * 100_000, b"\xff", b"9" * 9999):
        content = BEGINNING + rest
        begun_file.write_bytes(len(content).to_bytes(8, "little") + content)
        told(tiny_model, begun_file, "its header is wrong")
    assert again(tiny_model, begun_file, ignore_damaged_cache=True) == tiny_text


@pytest.mark.parametrize("content", [b"", b"my notes\n", b"{}" * 5000, b"\0" * 8 + BEGINNING[:-1]])
def test_what_is_somebodys_own(tiny_model: Bloom, begun_file: Path, content: bytes) -> None:
    """It is left alone, also where damage is to be ignored."""
    begun_file.write_bytes(content)
    for run in (again, lambda model, file, **options: ids_of(model.resume(file, **options))):
        for ignore in (False, True):
            with pytest.raises(NumpyBloomError, match=r"is no 'numpy-bloom kept text 1'; choose"):
                run(tiny_model, begun_file, ignore_damaged_cache=ignore)
    assert begun_file.read_bytes() == content


def test_what_is_in_the_way_of_a_new_file(tiny_model: Bloom, tmp_path: Path) -> None:
    partial = tmp_path / "text.partial"
    partial.write_text("my notes")
    with pytest.raises(NumpyBloomError, match=r"text\.partial is in the way; move it, or choose"):
        again(tiny_model, tmp_path / "text")
    assert partial.read_text() == "my notes"
    assert list(tmp_path.iterdir()) == [partial]


def edited(file: Path, edit: Any) -> None:
    """Change the parsed header, with the checksums of the records left as they are."""
    whole = file.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    edit(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 4096)
    file.write_bytes(len(text).to_bytes(8, "little") + text + whole[start:])


def resized(header: dict[str, Any], shape: list[Any]) -> None:
    """All three arrays have the length of `keys_values`, and lie where they must."""
    end = 0
    parts = {"tokens": ([shape[0], 4], 8), "checksums": ([shape[0]], 8), "keys_values": (shape, 4)}
    for name, (sizes, item) in parts.items():
        begin, end = end, end + int(np.prod([int(size) for size in sizes], dtype=object)) * item
        header[name] |= {"shape": sizes, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("shape", "what"),
    [
        ([10**12, 2, 2, 2, 4], "bytes, expected 168,000,"),
        ([10**30, 2, 2, 2, 4], "bytes, expected 168,000,"),
        ([16, 2, 2, 2, 4], "bytes, expected "),
        ([17, 2, 2, 4, 2], "its header or its first token is wrong"),
        ([0, 2, 2, 2, 4], "keys and values have shape"),
        ([-17, 2, 2, 2, 4], "keys and values have shape"),
        ([17, 2, 2, 2], "keys and values have shape"),
        ([17, 2, 2, 2, 4.0], "keys and values have shape"),
    ],
)
def test_sizes_that_lie(tiny_model: Bloom, begun_file: Path, shape: list[Any], what: str) -> None:
    edited(begun_file, lambda header: resized(header, shape))
    told(tiny_model, begun_file, what)


def about_edited(file: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a file says of its text."""

    def edit_header(header: dict[str, Any]) -> None:
        about = json.loads(header["__metadata__"]["about"])
        edit(about)
        header["__metadata__"]["about"] = json.dumps(about)

    edited(file, edit_header)


def rewrite_records(file: Path, token_ids: Sequence[int]) -> None:
    """Write the first records by hand, with checksums that agree with each other and the header."""
    kept = prompt_cache_layout
    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    check = kept.checksum_of(content[:start], 0)
    for place, token_id in enumerate(token_ids):
        record = kept.CONTENT.pack(token_id, 0.0, 1)
        check = kept.checksum_of(record, check)
        at = start + 32 * place
        content[at : at + 32] = record + check.to_bytes(8, "little")
    file.write_bytes(content)


def test_options_that_were_edited(tiny_model: Bloom, begun_file: Path) -> None:
    about_edited(begun_file, lambda about: about["settings"].update(temperature=2.0))
    told(tiny_model, begun_file, "its header or its first token is wrong")


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (lambda about: about.pop("model"), "model"),
        (lambda about: about.pop("settings"), "temperature, top_k"),
        (lambda about: about.update(settings=5), "temperature, top_k"),
        (lambda about: about.pop("prompt_tokens"), "prompt_tokens"),
        (lambda about: about.pop("taken_over"), "taken_over"),
        (lambda about: about["settings"].pop("temperature"), "temperature"),
        (lambda about: about["settings"].pop("draft_model"), "draft_model"),
    ],
)
def test_another_version(
    tiny_model: Bloom, begun_file: Path, edit: Callable[[dict[str, Any]], Any], name: str
) -> None:
    """It knew less of a text."""
    about_edited(begun_file, edit)
    rewrite_records(begun_file, PROMPT + [5] * BEGUN)
    told = f"^{begun_file} does not say {name}[^:]*: it was written with another version"
    with pytest.raises(NumpyBloomError, match=told):
        tiny_model.resume(begun_file)
    if name in prompt_cache.ABOUT:
        with pytest.raises(NumpyBloomError, match=told):
            again(tiny_model, begun_file)
    else:  # a text that begins has its own
        again(tiny_model, begun_file, ignore_damaged_cache=True)


def test_records_of_another_kind(tiny_model: Bloom, begun_file: Path) -> None:
    """An id that is no token."""
    rewrite_records(begun_file, [*PROMPT, 999])
    with pytest.raises(NumpyBloomError, match="token id 999 is out of range"):
        tiny_model.resume(begun_file, ignore_damaged_cache=True)
