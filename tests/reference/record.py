"""Record what transformers computes, for tests that run without it.

    python tests/reference/record.py

For each model of MODELS it writes, into tests/reference/recorded/, a folder with a Hugging Face
checkpoint and a file NAME.safetensors with every stage of a pass over a prompt, the prompt, and
64 tokens of greedy continuation. All weights are random, from fixed seeds.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from transformers_stages import Sizes, greedy, load, random_bloom, save, stages

FOLDER = Path(__file__).parent / "recorded"
NEW_TOKENS = 64


class Recording(NamedTuple):
    """One model: its sizes, how its checkpoint is stored, and the tokens of its prompt."""

    sizes: Sizes
    dtype: torch.dtype
    layout: str
    prompt_tokens: int


MODELS = {
    "heads12-bfloat16": Recording(Sizes(heads=12, seed=18), torch.bfloat16, "safetensors", 20),
    "heads6-float16-postnorm": Recording(
        Sizes(heads=6, post_layernorm=True, epsilon=1e-3, seed=20), torch.float16, "bin", 20
    ),
    "heads2-float32-untied": Recording(
        Sizes(heads=2, head_size=8, blocks=1, untied=True, seed=24), torch.float32, "safetensors", 9
    ),
}


def record(name: str, recording: Recording) -> None:
    """Make one model and write its checkpoint and its stages."""
    shutil.rmtree(FOLDER / name, ignore_errors=True)
    save(random_bloom(recording.sizes), FOLDER / name, recording.dtype, recording.layout)
    model = load(FOLDER / name)
    random = np.random.default_rng(recording.sizes.seed)
    prompt = random.integers(0, recording.sizes.vocab, recording.prompt_tokens).tolist()
    arrays = stages(model, prompt)
    continuation, margin = greedy(model, prompt, NEW_TOKENS)
    assert margin > 1e-4, "other arithmetic might choose other tokens; take another seed"
    tokens = {"prompt": prompt, "continuation": continuation}
    save_file(
        arrays | {key: np.array(ids, dtype=np.int64) for key, ids in tokens.items()},
        FOLDER / f"{name}.safetensors",
        metadata={"torch": torch.__version__, "transformers": transformers.__version__},
    )
    print(f"{name}: {len(arrays)} stages, {len(set(continuation))} different new tokens")


if __name__ == "__main__":
    for name, recording in MODELS.items():
        record(name, recording)
