"""Tokens as people can read them: parts of characters as bytes, white space as marks."""

import unicodedata

from tokenizers import Tokenizer

MARKS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}
JOINERS = "\u200c\u200d"
"""Zero-width, but part of how a word is spelt in Persian or Hindi."""


class Labels:
    """A legible label for each token of a vocabulary.

    Args:
        tokenizer: whose; without one a label is the token's number.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._special: dict[int, str] = {}
        if tokenizer is not None:
            added = tokenizer.get_added_tokens_decoder()
            self._special = {number: token.content for number, token in added.items()}

    def __call__(self, token_id: int) -> str:
        """Of one token; `#250700` if it has no text."""
        if token_id in self._special:
            return self._special[token_id]
        token = None if self._tokenizer is None else self._tokenizer.id_to_token(token_id)
        if not token:
            return f"#{token_id}"
        try:
            data = bytes(_BYTES[character] for character in token)
        except KeyError:  # not a byte-level vocabulary
            data = token.encode()
        return readable(data)


def readable(data: bytes) -> str:
    """Bytes as text: what is no whole character as `<0xE4>`, what cannot be seen as a mark."""
    text = data.decode("utf-8", "surrogateescape")  # a stray byte becomes U+DC80 to U+DCFF
    visible = any(_shows(character) for character in text)
    label = "".join(_character(character, visible) for character in text)
    return f"◌{label}" if unicodedata.category(text[0])[0] == "M" else label


def is_right_to_left(text: str) -> bool:
    """Whether a text's first letter is written from the right."""
    directions = (unicodedata.bidirectional(character) for character in text)
    return next((d != "L" for d in directions if d in ("L", "R", "AL")), False)


def _character(character: str, among_visible: bool) -> str:
    if character in MARKS:
        return MARKS[character]
    if "\udc80" <= character <= "\udcff":
        return f"<0x{ord(character) - 0xDC00:02X}>"
    if _shows(character) or (among_visible and character in JOINERS):
        return character
    return f"<U+{ord(character):04X}>"


def _shows(character: str) -> bool:
    """Neither separator, control, format character nor unassigned."""
    return unicodedata.category(character)[0] not in "ZC"


def _byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for, as GPT-2's encoder.py
    has it: printable Latin-1 for itself, the others in order from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()
