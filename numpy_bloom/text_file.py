"""A text file of any length, turned into tokens."""

import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from numpy_bloom.errors import NumpyBloomError, failing_as
from numpy_bloom.inputs import token_id_array
from numpy_bloom.model.forward import TokenIds
from numpy_bloom.text_model import TextModel

PIECE_CHARACTERS = 1 << 18
"""So much of a text is turned into tokens at a time: the tokenizer needs hundreds of bytes for each
token meanwhile."""

BOUNDARY = re.compile(r".*(?:\w(?= \w)|\n(?=\w))", re.DOTALL)
"""Up to the last place where BLOOM's tokenizer cuts a text before it looks for tokens: between a
word and the space before the next one, or between a line break and a word."""


@dataclass(frozen=True)
class Text:
    """A text, whose first token is not scored, for it has no context.

    Attributes:
        ids: (T,) int64.
        scored_bytes: UTF-8 bytes that all tokens but the first stand for.
    """

    ids: TokenIds
    scored_bytes: int


def read_text(bloom: TextModel, name: str) -> Text:
    """Read a file, or stdin if the name is `-`, and turn it into tokens.

    Raises:
        NumpyBloomError: it cannot be read or is not UTF-8, the model has no tokenizer, or one of
            the ids is not in its vocabulary.
    """
    shown = "stdin" if name == "-" else name
    parts, nbytes = [np.empty(0, dtype=np.int64)], 0
    try:
        with failing_as(f"cannot read {shown}"), _open(name) as file:
            for piece in pieces(file):
                parts.append(np.array(bloom.encode(piece), dtype=np.int64))
                nbytes += len(piece.encode())
    except UnicodeDecodeError as error:
        raise NumpyBloomError(f"{shown} is not UTF-8: {error.reason}") from error
    ids = np.concatenate(parts)
    if len(ids):
        ids = token_id_array(ids, bloom.config)
        assert bloom.tokenizer is not None
        # The vocabulary spells each byte as one character.
        nbytes -= len(bloom.tokenizer.id_to_token(int(ids[0])) or "")
    return Text(ids, nbytes)


def _open(name: str) -> TextIO:
    """The text, its line breaks as they are."""
    if name != "-":
        return Path(name).open(encoding="utf-8", newline="")
    if sys.stdin is None:
        raise NumpyBloomError("stdin is closed; expected a text there")
    return io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", newline="")


def pieces(file: TextIO) -> Iterator[str]:
    """Cut a text into pieces whose tokens together are those of the whole."""
    text = ""
    while new := file.read(PIECE_CHARACTERS):
        text += new
        if whole := BOUNDARY.match(text):
            yield whole[0]
            text = text[whole.end() :]
    if text:
        yield text
