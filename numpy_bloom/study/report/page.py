"""The page itself: a template, its style and scripts, and the numbers, written into one file."""

import json
import zlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
from tokenizers import Tokenizer

from numpy_bloom.errors import NumpyBloomError, failing_as
from numpy_bloom.model.alibi import alibi_slopes
from numpy_bloom.running.runner import check_finite
from numpy_bloom.study.cost import costs
from numpy_bloom.study.report.labels import Labels, is_right_to_left
from numpy_bloom.study.report.numbers import (
    NORMED,
    PATTERN_STEPS,
    Array,
    arrays,
    patterns,
)
from numpy_bloom.study.trace import Trace
from numpy_bloom.tokenizer import decode
from numpy_bloom.weights.dtypes import Floats

HERE = Path(__file__).parent
SCRIPTS = ("data.js", "drawing.js", "figures.js", "tables.js", "page.js")


def write_report(
    trace: Trace, logits: Floats, tokenizer: Tokenizer | None, path: str | Path
) -> None:
    """Write a page that shows a traced pass, to be opened in a browser.

    One block's attention is in memory at a time. The file appears when it is complete.

    Args:
        trace: of a text's first pass, with the stages `NAMES`.
        logits: (T, V), of that pass.
        tokenizer: of the model; without one tokens are shown as numbers.
        path: the file; one that is there is replaced.

    Raises:
        NumpyBloomError: the trace lacks a stage or is of a later pass, logits are not finite,
            weights cannot be read, or the file cannot be written.
    """
    if trace.past:
        raise NumpyBloomError("the report shows a text's first pass; this trace is of a later one")
    check_finite(logits, trace.model)
    path = check_page(path)
    aside = path.with_name(f"{path.name}.partial")
    with failing_as(f"cannot write {path}"):
        try:
            with aside.open("w", encoding="utf-8") as file:
                _write(file, trace, logits, tokenizer)
            aside.replace(path)
        except BaseException:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise


def check_page(path: str | Path) -> Path:
    """See that a page can be written, before what it is to show is computed.

    Returns:
        The file that is meant by the path.

    Raises:
        NumpyBloomError: it cannot.
    """
    path = Path(path).resolve()  # a link stays a link
    if path.exists() and not path.is_file():
        raise NumpyBloomError(f"{path} is no regular file; choose another")
    with failing_as(f"cannot write {path}"), TemporaryFile(dir=path.parent):
        return path


def _write(file: IO[str], trace: Trace, logits: Floats, tokenizer: Tokenizer | None) -> None:
    template = (HERE / "page.html").read_text(encoding="utf-8")
    before, after_style = template.split("/* page.css */")
    between, after_data = after_style.split("<!-- data -->")
    until_script, end = after_data.split("/* scripts */")
    file.write(before + (HERE / "page.css").read_text(encoding="utf-8") + between)
    for element in _data(trace, logits, tokenizer):
        file.write(element)
    file.write(until_script)
    for name in SCRIPTS:
        file.write((HERE / name).read_text(encoding="utf-8"))
    file.write(end)


def _data(trace: Trace, logits: Floats, tokenizer: Tokenizer | None) -> Iterator[str]:
    """Script elements that hold the numbers."""
    at_once = arrays(trace, logits)
    facts = _facts(trace, tokenizer) | {"arrays": list(at_once)}
    shown = [trace.token_ids, at_once["next-ids"].ravel(), at_once["lens-ids"].ravel()]
    labels = Labels(tokenizer)
    facts["labels"] = {int(i): labels(int(i)) for i in np.unique(np.concatenate(shown))}
    yield f'<script type="application/json" id="facts">{escaped_json(facts)}</script>\n'
    for name, array in at_once.items():
        yield _element(name, array)
    for i, array in enumerate(patterns(trace)):
        yield _element(f"pattern-{i}", array)


def _facts(trace: Trace, tokenizer: Tokenizer | None) -> dict[str, Any]:
    config = trace.model.config
    text = decode(tokenizer, trace.token_ids.tolist())
    return {
        "text": text,
        "rightToLeft": is_right_to_left(text),
        "tokens": trace.token_ids.tolist(),
        "sizes": {
            "T": len(trace.token_ids),
            "S": len(trace.token_ids),
            "L": config.num_hidden_layers,
            "H": config.hidden_size,
            "4H": 4 * config.hidden_size,
            "N": config.num_attention_heads,
            "D": config.head_size,
            "V": config.vocab_size,
        },
        "slopes": alibi_slopes(config.num_attention_heads).tolist(),
        "stages": [
            {"name": s.name, "shape": s.shape, "formula": s.formula, "meaning": s.meaning}
            for s in NORMED
        ],
        "patternSteps": PATTERN_STEPS,
        "bill": [cost._asdict() for cost in costs(trace)],
    }


def _element(name: str, array: Array) -> str:
    """An array as text: little-endian, compressed, base64."""
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    packed = b64encode(zlib.compress(data.tobytes(), 6)).decode("ascii")
    shape = " ".join(map(str, array.shape))
    return (
        f'<script type="application/octet-stream" id="array-{name}" '
        f'data-dtype="{array.dtype.name}" data-shape="{shape}">{packed}</script>\n'
    )


def escaped_json(value: object) -> str:
    """JSON that neither ends the script element it stands in nor begins a comment there."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
