"""The prompts of a file: one a line, or JSON Lines."""

from pathlib import Path
from typing import Any

from numpy_bloom.command import text_argument
from numpy_bloom.errors import NumpyBloomError, failing_as
from numpy_bloom.weights.bounded import parse_json


def read_prompts(name: str) -> list[str]:
    """The prompts of a file: one a line or, if the first begins with `{`, JSON Lines with `prompt`.

    Empty lines are no prompts, and a byte order mark is no part of one.

    Args:
        name: of the file; `-` is stdin.

    Raises:
        NumpyBloomError: it cannot be read, is not UTF-8, holds no prompt, or a line of JSON has no
            `prompt`.
    """
    text = _text(name).removeprefix("\ufeff")
    lines = {number: line for number, line in enumerate(text.split("\n"), 1) if line.strip()}
    if not lines:
        raise NumpyBloomError(f"{name} holds no prompts; expected one a line")
    if not next(iter(lines.values())).lstrip().startswith("{"):
        return list(lines.values())
    return [_prompt(line, f"{name}, line {number}") for number, line in lines.items()]


def _text(name: str) -> str:
    if name == "-":
        return text_argument("-")
    try:
        with failing_as(f"cannot read {name}"):
            return Path(name).read_text(encoding="utf-8")
    except UnicodeError as error:
        raise NumpyBloomError(f"cannot read {name}: {error}") from error


def _prompt(line: str, where: str) -> str:
    """That of a JSON line."""
    try:
        value: Any = parse_json(line.encode())
    except ValueError as error:
        raise NumpyBloomError(f"cannot read {where}, as JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(prompt := value.get("prompt"), str):
        raise NumpyBloomError(f"{where} has no text as 'prompt'")
    if any(0xD800 <= ord(character) < 0xE000 for character in prompt):
        raise NumpyBloomError(f"{where} has a 'prompt' that is no valid Unicode")
    if not prompt:
        raise NumpyBloomError(f"{where} has an empty 'prompt'; give at least one character")
    return prompt
