"""tokenizer.json, read with care: the library does what the file says, at any price.

A file may have every text filled up to a billion tokens, doubled forty times, or searched with an
expression that takes years; some values make the library abort. So only what BLOOM's tokenizers
are made of gets to it: a BPE, and a few parts of known cost.
"""

from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.bounded import read_json_and_bytes

TOKENIZER = "tokenizer.json"

MOST_TOKENIZER_BYTES = 32_000_000
"""BLOOM's tokenizer.json has 14.5 MB, 26 MB if it is indented."""
MOST_OUTSIDE = 1_000_000
"""Characters beside the vocabulary and its merges: added tokens, for the most part."""
MOST_PARTS = 5
"""In each section; any of them may double a text."""

SECTIONS = {
    "normalizer": {"NFC", "NFD", "NFKC", "NFKD", "Lowercase"},
    "pre_tokenizer": {"Split", "ByteLevel", "Digits", "Punctuation", "Whitespace"},
    "post_processor": {"ByteLevel", "TemplateProcessing"},
    "decoder": {"ByteLevel", "Fuse"},
}
"""The parts that a tokenizer may have, besides sequences of them."""
SEQUENCES = ("normalizers", "pretokenizers", "processors", "decoders")
EXPRESSIONS = (
    None,
    " ?[^(\\s|[.,!?…。，、।۔،])]+",  # noqa: RUF001 - BLOOM's
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2's
)
"""Regular expressions by which a text may be split; others may take forever on some text."""

WITHOUT = "without this file a model takes and gives token ids"
"""The way out for a model whose tokenizer cannot be had."""

OTHERS = {"version", "truncation", "padding", "added_tokens", "model"}
"""Keys of the file beside its sections."""
MODEL = {"type", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"}
"""Keys of its BPE."""
ABSENT = {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}
"""Settings of a BPE that BLOOM's do not use."""


def read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer | None:
    """The tokenizer of a model's folder, if there is one; it neither pads nor cuts texts.

    Raises:
        NumpyBloomError: its file cannot be read, asks for what no BLOOM needs, or has a token
            without a row among the `vocab_size` word embeddings.
    """
    path = folder / TOKENIZER
    if not path.exists() and not path.is_symlink():
        return None
    values, content = read_json_and_bytes(path, MOST_TOKENIZER_BYTES)
    fault = next(_faults(values), None)
    if fault:
        raise NumpyBloomError(f"{path}: {fault}, which no tokenizer of a BLOOM needs; {WITHOUT}")
    try:
        tokenizer = Tokenizer.from_buffer(content.removeprefix(BOM_UTF8))
    except BaseException as error:
        raise _told(error, f"cannot read {path}") from error
    added = [token["id"] for token in values.get("added_tokens") or []]
    # The library numbers added tokens itself.
    last = max(*values["model"]["vocab"].values(), *added, *tokenizer.get_added_tokens_decoder(), 0)
    if last >= vocab_size:
        raise NumpyBloomError(
            f"{path}: it has the token id {last:,}, expected ids below {vocab_size:,}, the "
            f"vocab_size in config.json; {WITHOUT}"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text. Nothing is added.

    Raises:
        NumpyBloomError: the text is no valid Unicode, or the tokenizer fails.
    """
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    except TypeError as error:  # of lone surrogates
        raise NumpyBloomError("the text is not valid Unicode: it has half a character") from error
    except BaseException as error:
        raise _told(error, "the tokenizer cannot split the text") from error
    return ids


def decode(tokenizer: Tokenizer | None, token_ids: Sequence[int]) -> str:
    """Text of token ids, special tokens included; empty without a tokenizer.

    Bytes that are no whole character become U+FFFD.
    """
    if tokenizer is None:
        return ""
    return str(tokenizer.decode(token_ids, skip_special_tokens=False))


def _told(error: BaseException, what: str) -> BaseException:
    """The library raises plain Exception, and for a panic one that is none (pyo3)."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return NumpyBloomError(f"{what}: {error}")
    return error


def _faults(values: dict[str, Any]) -> Iterator[str]:
    """What a parsed tokenizer.json has that it should not have."""
    unknown = values.keys() - OTHERS - SECTIONS.keys()
    if unknown:
        yield f"it has the key {min(unknown)!r}"
    model = values.get("model")
    outside = sum(len(repr(value)) for key, value in values.items() if key != "model")
    if outside > MOST_OUTSIDE:
        yield f"it has more than {MOST_OUTSIDE:,} characters beside its vocabulary"
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        yield "its model is no BPE"
        return
    unknown = model.keys() - MODEL - ABSENT
    if unknown:
        yield f"its model has the key {min(unknown)!r}"
    for key in sorted(ABSENT & model.keys()):
        if model[key] not in (None, "", 0):
            yield f"its model has a {key}"
    if not _plain(model):
        yield "its vocabulary or its merges are malformed"
    elif not model["vocab"]:
        yield "its vocabulary is empty"
    for section, known in SECTIONS.items():
        parts = list(_parts(values.get(section)))
        if len(parts) > MOST_PARTS:
            yield f"its {section} has {len(parts)} parts"
        for part in parts:
            fault = _part_fault(part, known)
            if fault:
                yield f"its {section} {fault}"


def _plain(model: dict[str, Any]) -> bool:
    """Whether vocabulary and merges have the right types, which take little memory."""
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        return False
    pairs = [merge for merge in merges if isinstance(merge, list)]
    sides = {type(side) for pair in pairs for side in pair}
    return (
        {type(number) for number in vocab.values()} <= {int}
        and {type(merge) for merge in merges} <= {str, list}
        and {len(pair) for pair in pairs} <= {2}
        and sides <= {str}
    )


def _parts(value: object) -> Iterator[object]:
    """The parts of a section, those of sequences one by one."""
    if isinstance(value, dict) and value.get("type") == "Sequence":
        for inside in SEQUENCES:
            listed = value.get(inside, [])
            for part in listed if isinstance(listed, list) else [listed]:
                yield from _parts(part)
    elif value is not None:
        yield value


def _part_fault(part: object, known: set[str]) -> str | None:
    """What one part has that it should not have, if anything."""
    kind = part.get("type") if isinstance(part, dict) else part
    if not isinstance(part, dict) or not isinstance(kind, str) or kind not in known:
        return f"has the part {kind!r}"
    expression = _expression(part)
    if expression not in EXPRESSIONS:
        return f"has the regular expression {expression!r}"
    if kind == "TemplateProcessing" and not _is_template(part.get("single")):
        return f"repeats the text, or adds more than {MOST_PARTS} tokens"
    return None


def _is_template(pieces: object) -> bool:
    """Whether a template has the text in it once, with a few tokens around it."""
    if not isinstance(pieces, list) or len(pieces) > 1 + MOST_PARTS:
        return False
    kinds = [[*piece][:1] if isinstance(piece, dict) else [] for piece in pieces]
    return kinds.count(["Sequence"]) == 1 and all(
        kind in (["Sequence"], ["SpecialToken"]) for kind in kinds
    )


def _expression(part: dict[str, Any]) -> object:
    """The regular expression of a part, or None."""
    pattern = part.get("pattern")
    return pattern.get("Regex") if isinstance(pattern, dict) else None
