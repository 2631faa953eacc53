"""What the tests of beam search share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import numpy_bloom
from support.checkpoints import byte_ids

Scores = npt.NDArray[np.float64]

PROMPT = byte_ids("Todos los seres")
NEW = 10
RANDOM: dict[str, Any] = {"heads": 3, "hidden": 24, "lm_head": "different"}


def log_probabilities(model: numpy_bloom.Bloom, ids: Sequence[int]) -> Scores:
    """Of the token after a text: a full pass, without cache."""
    logits = model(ids)[-1].astype(np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def found(model: numpy_bloom.Bloom, prompt: Any, **options: Any) -> Any:
    """A search that is over."""
    search = model.beam_search(prompt, **options)
    tokens = list(search)
    assert [token.id for token in tokens] == search.token_ids
    return search


def needed(model: numpy_bloom.Bloom) -> int:
    """All but weights, of the run that was prepared last."""
    return model.model.memory_for_all - model.model.stream.nbytes
