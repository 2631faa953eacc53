"""Engine: the loop of the tutorial of 2022, one `.bin` shard in memory at a time, in bfloat16.

Every pass loads every shard with `torch.load`, the embeddings twice, for they are the head too, and
goes through the whole text again: there is no cache. One block object takes all blocks' weights in
turn. https://arteagac.github.io/blog/bloom_local/
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig
from transformers.models.bloom.modeling_bloom import BloomBlock, build_alibi_tensor

from numpy_bloom.weights.dtypes import Floats

DTYPE = torch.bfloat16


class Tutorial:
    """The shards of a checkpoint: the embeddings', one a block, the last norm's."""

    def __init__(self, path: Path) -> None:
        self._config = AutoConfig.from_pretrained(path)
        self._config._attn_implementation = "eager"
        self._shards = sorted(path.glob("pytorch_model_*.bin"))
        self._block = BloomBlock(self._config, layer_idx=0).to(DTYPE).eval()
        self._final_norm = self._norm()
        self._final_norm.load_state_dict(self._load(-1, "ln_f."))
        self._text: list[int] = []

    def reset(self, tokens: int) -> None:
        """An empty text."""
        self._text = []

    @torch.inference_mode()
    def forward(self, token_ids: Sequence[int]) -> Floats:
        """One pass over all tokens so far; logits (V,)."""
        self._text += token_ids
        length = len(self._text)
        alibi = build_alibi_tensor(torch.ones(1, length), self._config.n_head, DTYPE)
        mask = torch.full((length, length), torch.finfo(DTYPE).min, dtype=DTYPE).triu(1)[None, None]
        hidden = self._embed(torch.tensor([self._text]))
        for block in range(self._config.n_layer):
            self._block.load_state_dict(self._load(1 + block, f"h.{block}."))
            hidden = self._block(hidden, alibi=alibi, attention_mask=mask)[0]
        logits: Floats = self._head(self._final_norm(hidden))[0, -1].float().numpy()
        return logits

    def _load(self, shard: int, prefix: str) -> dict[str, torch.Tensor]:
        """A shard's tensors by their names without the prefix."""
        tensors = torch.load(self._shards[shard], weights_only=True)
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}

    def _norm(self) -> nn.LayerNorm:
        config = self._config
        return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon, dtype=DTYPE)

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        tensors = self._load(0, "word_embeddings_layernorm.")
        embeddings = nn.Embedding.from_pretrained(tensors.pop("word_embeddings.weight"))
        norm = self._norm()
        norm.load_state_dict(tensors)
        embedded: torch.Tensor = norm(embeddings(ids))
        return embedded

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        config = self._config
        head = nn.utils.skip_init(
            nn.Linear, config.hidden_size, config.vocab_size, bias=False, dtype=DTYPE
        )
        head.load_state_dict({"weight": self._load(0, "word_embeddings.")["weight"]})
        logits: torch.Tensor = head(hidden)
        return logits


def open_engine(path: Path, threads: int) -> Tutorial:
    """Open a folder of shards."""
    torch.set_num_threads(threads)
    return Tutorial(path)
