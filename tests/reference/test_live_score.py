"""Log-probabilities and the mean loss of a long text against the installed transformers."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from numpy_bloom.perplexity import Windows, score_windows

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import transformers_stages as ts  # noqa: E402 - needs torch
from live import CASES, Case  # noqa: E402

if TYPE_CHECKING:
    from live import Opener

LOSS_TOLERANCE = 1e-5
"""Largest difference of mean losses, in nats per token."""

SCORE_TOLERANCE = 2e-4
"""And of one token's, of 2,000: the reference adds slope times position, up to 500, to attention
scores around 1."""


def text(tokens: int, vocab: int = 101) -> npt.NDArray[np.int64]:
    return np.random.default_rng(tokens).integers(0, vocab, tokens)


def losses(reference: Any, ids: npt.NDArray[np.int64]) -> tuple[float, npt.NDArray[np.float32]]:
    """What transformers calls the loss of a text, and each token's share of it, (T - 1,)."""
    tensor = torch.tensor(ids[None])
    with torch.no_grad():
        output = reference(tensor, labels=tensor, use_cache=False)
        each = torch.nn.functional.cross_entropy(
            output.logits[0, :-1], tensor[0, 1:], reduction="none"
        )
    return float(output.loss), each.numpy()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scores(pair: "Opener", case: Case) -> None:
    opened, ids = pair(case), text(300)
    loss, each = losses(opened.reference, ids)
    scores = opened.bloom.score(ids)
    assert np.abs(scores + each).max() < SCORE_TOLERANCE
    assert abs(-scores.mean(dtype=np.float64) - loss) < LOSS_TOLERANCE
    assert each.std() > 0.5  # says something


LONG = [
    Case(ts.Sizes(heads=6, head_size=8, blocks=2, seed=3)),
    Case(ts.Sizes(heads=16, blocks=2, vocab=3000, untied=True, seed=1), "bfloat16"),
    Case(ts.Sizes(heads=112, head_size=2, blocks=1, seed=2), "float16"),
]


@pytest.mark.parametrize("case", LONG, ids=str)
def test_loss_of_2000_tokens(pair: "Opener", case: Case) -> None:
    opened, ids = pair(case), text(2000, case.sizes.vocab)
    loss, each = losses(opened.reference, ids)
    scores = opened.bloom.score(ids)
    assert abs(-scores.mean(dtype=np.float64) - loss) < LOSS_TOLERANCE
    assert np.abs(scores + each).max() < SCORE_TOLERANCE


def test_loss_by_windows(pair: "Opener") -> None:
    """Of the tokens that each window adds; transformers leaves out a label of -100."""
    opened, ids = pair(LONG[0]), text(2000)
    windows = Windows(len(ids), 512, 200)
    expected = 0.0
    for begin, end, scored in windows:
        tensor = torch.tensor(ids[None, begin:end])
        labels = tensor.clone()
        labels[0, : end - begin - scored] = -100
        with torch.no_grad():
            output = opened.reference(tensor, labels=labels, use_cache=False)
        expected += float(output.loss) * scored
    for together in (1, 4):
        found = np.concatenate(list(score_windows(opened.model, ids, windows, together)))
        assert len(found) == 1999
        assert abs(-found.sum(dtype=np.float64) - expected) / 1999 < LOSS_TOLERANCE
