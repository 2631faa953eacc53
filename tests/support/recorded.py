"""The recorded references: what tests/reference/record.py wrote, read without torch."""

from pathlib import Path
from typing import NamedTuple

from safetensors.numpy import load_file

import numpy_bloom
from conversion import convert
from numpy_bloom.bloom import Bloom
from numpy_bloom.running.model import Model
from support.parity import Array

FOLDER = Path(__file__).parents[1] / "reference" / "recorded"
NAMES = ("heads12-bfloat16", "heads2-float32-untied", "heads6-float16-postnorm")


class Recorded(NamedTuple):
    """A converted checkpoint, opened, with what transformers computed from the same checkpoint.

    Attributes:
        bloom: the opened model.
        prompt: token ids.
        stages: of a pass over the prompt.
        continuation: greedily, 64 tokens.
    """

    bloom: Bloom
    prompt: list[int]
    stages: dict[str, Array]
    continuation: list[int]

    @property
    def model(self) -> Model:
        """What one hands a tap."""
        return self.bloom.model


def read_recorded(name: str, folder: Path) -> Recorded:
    """Convert one recorded checkpoint into `folder`, unless it is there, open it, and read its
    reference."""
    if not (folder / name).exists():
        convert(FOLDER / name, folder / name)
    stages = load_file(FOLDER / f"{name}.safetensors")
    prompt, continuation = (stages.pop(key).tolist() for key in ("prompt", "continuation"))
    return Recorded(numpy_bloom.load(folder / name), prompt, stages, continuation)
