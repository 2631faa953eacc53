"""Engine: transformers, the whole model in memory.

https://huggingface.co/docs/transformers/model_doc/bloom
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BloomForCausalLM, DynamicCache
from transformers.utils.logging import disable_progress_bar

from numpy_bloom.weights.dtypes import Floats


class Cached:
    """A transformers model and the cache of one sequence."""

    def __init__(self, model: BloomForCausalLM) -> None:
        self._model = model.eval()
        self.reset(0)

    def reset(self, tokens: int) -> None:
        """An empty cache; it grows."""
        self._cache = DynamicCache(config=self._model.config)

    @torch.inference_mode()
    def forward(self, token_ids: Sequence[int]) -> Floats:
        """One pass; logits (V,)."""
        output = self._model(
            torch.tensor([token_ids]), past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        logits: Floats = output.logits[0, -1].float().numpy()
        return logits


def open_engine(path: Path, threads: int, dtype: str) -> Cached:
    """Load a checkpoint in a type."""
    torch.set_num_threads(threads)
    disable_progress_bar()
    return Cached(BloomForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)))
