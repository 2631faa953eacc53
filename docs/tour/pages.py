"""The blocks of a Markdown page, and running those that are Python."""

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

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


class Runner:
    """Runs the Python of one page, in one namespace and under one set of NumPy's print options.

    Attributes:
        namespace: the names that the page's code has made so far.
    """

    def __init__(self, page_name: str) -> None:
        self.namespace: dict[str, Any] = {"__name__": "__page__"}
        self._page_name = page_name
        self._print_options = np.get_printoptions()

    def run(self, source: str, line: int = 1) -> str:
        """Run a block that begins at a line of the page.

        Returns:
            What it prints.
        """
        code = compile("\n" * (line - 1) + source, self._page_name, "exec")
        printed = io.StringIO()
        with np.printoptions(**self._print_options), contextlib.redirect_stdout(printed):
            exec(code, self.namespace)
            self._print_options = np.get_printoptions()
        return printed.getvalue()
