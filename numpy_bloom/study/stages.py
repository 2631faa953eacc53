"""Every stage of the forward pass: its name, its shape, its formula and what it means.

Names follow TransformerLens (https://github.com/TransformerLensOrg/TransformerLens), without its
"hook_", where it has one: `blocks.3.attn.pattern`. ALiBi, which it lacks, is taken apart: scores
are attn.qk + attn.alibi + attn.mask.
"""

import inspect
import math
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model import attention, block, forward, mlp
from numpy_bloom.model.config import BloomConfig


class Stage(NamedTuple):
    """What is known of a stage before any model is opened.

    Attributes:
        name: within its block.
        shape: in the letters of `numpy_bloom.model.config`.
        formula: from stages and parameters.
        meaning: in one line.
        module: where it is computed.
    """

    name: str
    shape: str
    formula: str
    meaning: str
    module: ModuleType


BEFORE_BLOCKS = (
    Stage("embed", "T H", "word_embeddings[token_ids]", "a row for each token", forward),
)
IN_BLOCK = (
    Stage(
        "resid_pre",
        "T H",
        "resid_post of the block before; of block 0: layer_norm(embed)",
        "the residual stream as it enters",
        block,
    ),
    Stage(
        "ln1.normalized",
        "T H",
        "layer_norm(resid_pre)",
        "each token's row brought to one scale",
        block,
    ),
    Stage(
        "attn.q",
        "T N D",
        "(ln1.normalized · query_key_valueᵀ + bias)[:, :, 0]",
        "what each token looks for",
        attention,
    ),
    Stage(
        "attn.k",
        "T N D",
        "(ln1.normalized · query_key_valueᵀ + bias)[:, :, 1]",
        "what each token is found by",
        attention,
    ),
    Stage(
        "attn.v",
        "T N D",
        "(ln1.normalized · query_key_valueᵀ + bias)[:, :, 2]",
        "what each token hands on",
        attention,
    ),
    Stage("attn.qk", "N T S", "q · kᵀ / √D", "how well query and key agree", attention),
    Stage("attn.alibi", "N T S", "-slope · distance", "ALiBi: near keys weigh more", attention),
    Stage("attn.mask", "T S", "0 up to the query, -inf after it", "no look ahead", attention),
    Stage(
        "attn.attn_scores", "N T S", "attn.qk + attn.alibi + attn.mask", "before softmax", attention
    ),
    Stage(
        "attn.pattern",
        "N T S",
        "softmax(attn.attn_scores)",
        "the share that each query takes of each value",
        attention,
    ),
    Stage("attn.z", "T N D", "attn.pattern · v", "what each head has gathered", attention),
    Stage("attn_out", "T H", "attn.z · denseᵀ + bias", "what attention adds", attention),
    Stage(
        "resid_mid",
        "T H",
        "resid_pre + attn_out",
        "the residual stream between the two halves",
        block,
    ),
    Stage("ln2.normalized", "T H", "layer_norm(resid_mid)", "brought to one scale again", block),
    Stage("mlp.pre", "T 4H", "ln2.normalized · dense_h_to_4hᵀ + bias", "how far neurons fire", mlp),
    Stage("mlp.post", "T 4H", "gelu(mlp.pre)", "the neurons' activations", mlp),
    Stage("mlp_out", "T H", "mlp.post · dense_4h_to_hᵀ + bias", "what the MLP adds", mlp),
    Stage("resid_post", "T H", "resid_mid + mlp_out", "the residual stream as it leaves", block),
)
"""In the order in which they are computed. With `apply_residual_connection_post_layernorm` the sums
begin with the layer norms' outputs in place of resid_pre and resid_mid."""
AFTER_BLOCKS = (
    Stage(
        "ln_final.normalized",
        "T H",
        "layer_norm(resid_post of the last block)",
        "what meets the vocabulary",
        forward,
    ),
    Stage("logits", "T V", "ln_final.normalized · lm_headᵀ", "a score for each token", forward),
)
LAST_ROWS = tuple(stage.name for stage in AFTER_BLOCKS)
"""Stages that a pass may have of its last tokens only."""

BY_KEYS = ("attn.qk", "attn.alibi", "attn.mask", "attn.attn_scores", "attn.pattern")
"""Stages whose last axis are the keys S. The model computes them for some queries at a time, and
leaves out the keys after the last of these."""

LATER_KEYS = {"attn.mask": -math.inf, "attn.attn_scores": -math.inf}
"""What stands in a stage for keys that were left out; else 0."""


def local_name(name: str) -> str:
    """`attn.q` of `blocks.3.attn.q`; outside the blocks the name itself."""
    return name.split(".", 2)[2] if name.startswith("blocks.") else name


def stage_names(blocks: int) -> list[str]:
    """All stages of a forward pass through so many blocks, in the order of computation."""
    inner = [f"blocks.{i}.{stage.name}" for i in range(blocks) for stage in IN_BLOCK]
    before, after = ([stage.name for stage in stages] for stages in (BEFORE_BLOCKS, AFTER_BLOCKS))
    return [*before, *inner, *after]


def matching(names: str | None, blocks: int) -> list[str]:
    """The stages that a pattern names.

    Args:
        names: patterns as of file names, with commas between, such as `blocks.*.attn.z,logits`.
            None: all.
        blocks: L.

    Raises:
        NumpyBloomError: a pattern matches no stage.
    """
    every = stage_names(blocks)
    if names is None:
        return every
    patterns = [pattern.strip() for pattern in names.split(",")]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise NumpyBloomError(
                f"no stage is called {pattern!r}; the model has {blocks} blocks, and "
                "`python -m numpy_bloom.trace --list` prints all names"
            )
    return [name for name in every if any(fnmatchcase(name, pattern) for pattern in patterns)]


def stage_shape(name: str, config: BloomConfig, tokens: int, seen: int) -> tuple[int, ...]:
    """The shape of a stage, of a pass over so many tokens after which the cache holds `seen`."""
    sizes = {
        "T": tokens,
        "S": seen,
        "H": config.hidden_size,
        "4H": 4 * config.hidden_size,
        "N": config.num_attention_heads,
        "D": config.head_size,
        "V": config.vocab_size,
    }
    (shape,) = (stage.shape for stage in _all() if stage.name == local_name(name))
    return tuple(sizes[letter] for letter in shape.split())


def table() -> str:
    """All stages for people: name, shape, line of source, formula, meaning."""
    rows = [("name", "shape", "source", "formula", "meaning")]
    for stage in _all():
        name = f"blocks.*.{stage.name}" if stage in IN_BLOCK else stage.name
        rows.append((name, stage.shape, source(stage), stage.formula, stage.meaning))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[-1]])
        for row in rows
    )


def source(stage: Stage) -> str:
    """The line where a stage is handed to the onlooker, such as `model/attention.py:35`."""
    wanted = f'tap("{stage.name}"'
    path = Path(inspect.getfile(stage.module))
    lines = inspect.getsource(stage.module).splitlines()
    number = next(i for i, line in enumerate(lines, 1) if wanted in line)
    return f"{path.parent.name}/{path.name}:{number}"


def _all() -> Iterator[Stage]:
    yield from BEFORE_BLOCKS
    yield from IN_BLOCK
    yield from AFTER_BLOCKS
