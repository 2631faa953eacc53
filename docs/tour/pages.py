"""The blocks of a Markdown page, and running those that are Python."""

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """What stands between two lines of ```.

    Attributes:
        language: behind the opening ```: python, sh, text for what the code before it prints, or
            empty for what is neither.
        content: its lines.
        line: number of the first of them in the page.
        begin, end: where the block lies in the page, its ``` included.
    """

    language: str
    content: str
    line: int
    begin: int
    end: int


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return [
        Block(match[1], match[2], page.count("\n", 0, match.start(2)) + 1, *match.span())
        for match in FENCED.finditer(page)
    ]


def code_and_output(page: str) -> Iterator[tuple[Block, Block | None]]:
    """Every block of code with the `text` block that shows what it prints, None if there is none.

    Raises:
        ValueError: a `text` block follows no code.
    """
    code: Block | None = None
    for block in blocks(page):
        if block.language == "text":
            if code is None:
                raise ValueError(f"line {block.line}: this output follows no block of code")
            yield code, block
            code = None
        elif block.language:
            if code is not None:
                yield code, None
            code = block
    if code is not None:
        yield code, None


def run(code: Block, namespace: dict[str, Any], name: str) -> str:
    """Run a block of Python within a namespace, as a part of the page `name`.

    Returns:
        What it prints.
    """
    source = "\n" * (code.line - 1) + code.content  # so that a traceback names the page's line
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, name, "exec"), namespace)
    return printed.getvalue()
