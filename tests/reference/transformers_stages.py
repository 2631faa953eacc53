"""The reference: BLOOMs of Hugging Face transformers, and every stage of their forward pass.

Stages have the names and shapes of numpy_bloom's taps. Whatever is recorded passes through
transformers' own modules; nothing is computed here but `attn.qk`, which transformers fuses with
the addition of ALiBi.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from transformers import BloomConfig, BloomForCausalLM
from transformers.models.bloom import modeling_bloom

Array = npt.NDArray[np.float32]

LAYOUTS = ("safetensors", "bin", "bin-without-prefix")
"""How a checkpoint may lie on disk; the last is that of bigscience/bloom-560m, without a head."""


@dataclass(frozen=True)
class Sizes:
    """What kind of BLOOM to make. All parameters are random, from `seed`."""

    heads: int
    head_size: int = 4
    blocks: int = 2
    vocab: int = 101
    post_layernorm: bool = False
    epsilon: float = 1e-5
    untied: bool = False
    seed: int = 0


def random_bloom(sizes: Sizes) -> BloomForCausalLM:
    """A model whose every parameter is random, biases and norms too.

    The scales keep activations around 1 and attention far from uniform. Word embeddings are small,
    so that epsilon matters in their layer norm.
    """
    config = BloomConfig(
        vocab_size=sizes.vocab,
        hidden_size=sizes.heads * sizes.head_size,
        n_layer=sizes.blocks,
        n_head=sizes.heads,
        layer_norm_epsilon=sizes.epsilon,
        apply_residual_connection_post_layernorm=sizes.post_layernorm,
        tie_word_embeddings=not sizes.untied,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = BloomForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(sizes.seed)
    for name, parameter in model.named_parameters():
        mean, deviation = _distribution(name, parameter)
        with torch.no_grad():
            parameter.normal_(mean, deviation, generator=generator)
    return model


def _distribution(name: str, parameter: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation of one parameter's random numbers."""
    if name == "lm_head.weight" or name.endswith("word_embeddings.weight"):
        return 0.0, 0.1
    if parameter.ndim == 2:
        return 0.0, 1.3 / parameter.shape[1] ** 0.5
    if name.endswith("ln_f.weight"):  # of either sign: else a tied head repeats its input
        return 0.0, 2.0
    return (1.0 if name.endswith("layernorm.weight") else 0.0), 0.3


def save(model: BloomForCausalLM, folder: Path, dtype: torch.dtype, layout: str) -> None:
    """Write a checkpoint in one of the layouts, its numbers rounded to `dtype`."""
    model = model.to(dtype)
    if layout == "safetensors":
        model.save_pretrained(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    part = model if layout == "bin" else model.transformer
    torch.save(part.state_dict(), folder / "pytorch_model.bin")


def load(folder: Path) -> BloomForCausalLM:
    """What transformers makes of a checkpoint, computing in float32."""
    return BloomForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def stages(model: BloomForCausalLM, ids: Sequence[int]) -> dict[str, Array]:
    """Every stage of a pass over one sequence, in the order of computation."""
    found: dict[str, Array] = {}
    with _hooks(model, found), torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    return found


def logits(model: BloomForCausalLM, ids: Sequence[int]) -> Array:
    """(T, V)."""
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def greedy(
    model: BloomForCausalLM, ids: Sequence[int], new_tokens: int, **options: Any
) -> tuple[list[int], float]:
    """How `generate` continues a sequence without sampling.

    Returns:
        The new tokens, and by how much the best logit of the closest step led the second best,
        divided by max(1, the largest logit): the deviation that would not change any token.
    """
    prompt = torch.tensor([ids])
    found = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=new_tokens,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    scores = torch.cat(found.scores)  # (new tokens, V)
    best, second = scores.topk(2).values.T
    margin = (best - second).min() / max(1.0, scores.abs().max())
    return found.sequences[0, len(ids) :].tolist(), float(margin)


@contextmanager
def _hooks(model: BloomForCausalLM, found: dict[str, Array]) -> Iterator[None]:
    """While this is open, the model's forward pass leaves its stages in `found`."""
    body = model.transformer
    handles = [
        _keep_output(body.word_embeddings, "embed", found),
        _keep_output(body.ln_f, "ln_final.normalized", found),
        _keep_output(model.lm_head, "logits", found),
    ]
    running = []  # the block that is at work
    for i, block in enumerate(body.h):
        handles += _block_hooks(block, f"blocks.{i}.", found, running)

    def softmax(scores: torch.Tensor, **options: Any) -> torch.Tensor:
        found[f"{running[-1]}attn.attn_scores"] = _array(scores)
        return functional.softmax(scores, **options)

    patched = SimpleNamespace(softmax=softmax, dropout=functional.dropout)
    try:
        with mock.patch.object(modeling_bloom, "F", patched):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _block_hooks(
    block: nn.Module, prefix: str, found: dict[str, Array], running: list[str]
) -> list[Any]:
    attention, mlp = block.self_attention, block.mlp

    def before_block(_module: nn.Module, args: tuple[Any, ...]) -> None:
        running.append(prefix)
        found[f"{prefix}resid_pre"] = _array(args[0])

    def after_query_key_value(_module: nn.Module, _args: Any, fused: torch.Tensor) -> None:
        q, k, v = attention._reshape(fused)  # (1, N, T, D) each
        for name, value in zip("qkv", (q, k, v), strict=True):
            found[f"{prefix}attn.{name}"] = _array(value.transpose(1, 2))
        nothing, alpha = q.new_zeros(1, 1, 1), attention.inv_norm_factor
        qk = nothing.baddbmm(q[0], k[0].transpose(1, 2), beta=0, alpha=alpha)
        found[f"{prefix}attn.qk"] = _array(qk[None])

    def before_attention(_module: nn.Module, args: Any, options: dict[str, Any]) -> None:
        tokens = args[0].shape[1]
        alibi = options["alibi"].expand(-1, tokens, -1)  # (N, 1, S) before
        found[f"{prefix}attn.alibi"] = _array(alibi[None])
        found[f"{prefix}attn.mask"] = _array(options["attention_mask"][0])

    def before_dense(_module: nn.Module, args: tuple[torch.Tensor]) -> None:
        found[f"{prefix}attn.z"] = _array(args[0].unflatten(-1, (attention.num_heads, -1)))

    return [
        block.register_forward_pre_hook(before_block),
        _keep_output(block.input_layernorm, f"{prefix}ln1.normalized", found),
        attention.query_key_value.register_forward_hook(after_query_key_value),
        attention.register_forward_pre_hook(before_attention, with_kwargs=True),
        _keep_output(attention.attention_dropout, f"{prefix}attn.pattern", found),
        attention.dense.register_forward_pre_hook(before_dense),
        _keep_output(attention.dense, f"{prefix}attn_out", found),
        _keep_output(attention, f"{prefix}resid_mid", found, lambda output: output[0]),
        _keep_output(block.post_attention_layernorm, f"{prefix}ln2.normalized", found),
        _keep_output(mlp.dense_h_to_4h, f"{prefix}mlp.pre", found),
        _keep_output(mlp.gelu_impl, f"{prefix}mlp.post", found),
        _keep_output(mlp.dense_4h_to_h, f"{prefix}mlp_out", found),
        _keep_output(block, f"{prefix}resid_post", found, lambda output: output[0]),
    ]


def _keep_output(
    module: nn.Module,
    stage: str,
    found: dict[str, Array],
    choose: Callable[[Any], torch.Tensor] = lambda output: output,
) -> Any:
    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        found[stage] = _array(choose(output))

    return module.register_forward_hook(after)


def _array(batch: torch.Tensor) -> Array:
    """The only sequence of a batch, as NumPy."""
    return batch[0].detach().contiguous().clone().numpy()
