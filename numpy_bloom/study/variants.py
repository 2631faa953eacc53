"""Variants of one text, each with stages changed, in one pass over the weights."""

from collections.abc import Mapping, Sequence

import numpy as np

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.forward import TokenIds
from numpy_bloom.running.memory import Needs
from numpy_bloom.running.model import Model
from numpy_bloom.study.capture import Edit, check_edits, edited
from numpy_bloom.study.stages import BY_KEYS, LAST_ROWS, local_name
from numpy_bloom.weights.dtypes import Floats


def ablate_head(head: int) -> Edit:
    """An edit of `attn.z`, and of no other stage, after which one head has gathered nothing.

    The edit raises NumpyBloomError if there is no such head.
    """

    def edit(z: Floats) -> Floats:  # (T, N, D)
        if not 0 <= head < z.shape[1]:
            raise NumpyBloomError(f"head is {head}; the model's are 0 to {z.shape[1] - 1}")
        z[:, head] = 0
        return z

    return edit


def run_variants(model: Model, ids: TokenIds, variants: Sequence[Mapping[str, Edit]]) -> Floats:
    """Logits of the last token of each variant, (B, V), from one packed pass.

    Args:
        model: to run.
        ids: (T,), the text.
        variants: for each the edits of its stages, by name; an empty one is the text as it is.

    Raises:
        NumpyBloomError: there is no variant, an edit is wrong, or the memory does not suffice.
    """
    if not variants:
        raise NumpyBloomError("there are no variants; give at least one")
    for edits in variants:
        check_edits(edits, model.config)
    tokens, count = len(ids), len(variants)
    caches = model.prepare(Needs.of_one_pass([tokens] * count, logit_rows=count))

    def tap(name: str, array: Floats, rows: slice) -> Floats:
        if not any(name in edits for edits in variants):
            return array
        array = array.copy()
        for number, edits in enumerate(variants):
            if name not in edits:
                continue
            if name in LAST_ROWS:
                own = slice(number, number + 1)
            else:
                first = max(rows.start, number * tokens) - rows.start
                last = min(rows.stop, (number + 1) * tokens) - rows.start
                if first >= last:
                    continue
                own = slice(first, last)
            where = (..., own, slice(None)) if local_name(name) in BY_KEYS else (own,)
            array[where] = edited(name, edits[name], array[where])
        return array

    return model.run([np.asarray(ids)] * count, caches, tap=tap)
