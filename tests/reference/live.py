"""A BLOOM twice: one checkpoint, opened by transformers and, converted, by us."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers_stages as ts
from transformers import BloomForCausalLM

import numpy_bloom
from conversion import convert
from numpy_bloom.bloom import Bloom
from numpy_bloom.running.model import Model

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Case:
    """A random checkpoint and how it is stored.

    Attributes:
        sizes: of the model.
        dtype: of the checkpoint.
        layout: one of transformers_stages.LAYOUTS.
    """

    sizes: ts.Sizes
    dtype: str = "float32"
    layout: str = "safetensors"

    def __str__(self) -> str:
        flag = "postnorm" if self.sizes.post_layernorm else "prenorm"
        return f"heads{self.sizes.heads}-{flag}-{self.dtype}-{self.layout}"


@dataclass(frozen=True)
class Pair:
    """The same model on both sides.

    Attributes:
        bloom: ours.
        reference: transformers', computing in float32.
    """

    bloom: Bloom
    reference: BloomForCausalLM

    @property
    def model(self) -> Model:
        """What one hands a tap."""
        return self.bloom.model


Edit = Callable[[Any], None]


@dataclass
class Opener:
    """Makes checkpoints in a folder and opens them; closes ours at the end."""

    folder: Path
    pairs: dict[Case, Pair] = field(default_factory=dict)
    opened: list[Bloom] = field(default_factory=list)

    def __call__(self, case: Case) -> Pair:
        """The pair for a case, made at the first call."""
        if case not in self.pairs:
            self.pairs[case] = self.edited(case)
        return self.pairs[case]

    def edited(
        self,
        case: Case,
        dtype: str = "keep",
        edit_model: Edit = lambda model: None,
        edit_config: Edit = lambda config: None,
    ) -> Pair:
        """A new pair, after changes.

        Args:
            dtype: option of the conversion.
            edit_model: is given transformers' model before it is saved.
            edit_config: is given the parsed config.json, to change.
        """
        folder = self.folder / str(len(self.opened))
        model = ts.random_bloom(case.sizes)
        with torch.no_grad():
            edit_model(model)
        ts.save(model, folder / "hf", getattr(torch, case.dtype), case.layout)
        config = json.loads((folder / "hf" / "config.json").read_text())
        edit_config(config)
        (folder / "hf" / "config.json").write_text(json.dumps(config))
        convert(folder / "hf", folder / "converted", dtype)
        self.opened.append(numpy_bloom.load(folder / "converted", threads=1))
        return Pair(self.opened[-1], ts.load(folder / "hf"))

    def close(self) -> None:
        """Close all of ours."""
        for bloom in self.opened:
            bloom.close()


def _cases() -> Iterator[Case]:
    """Every number of heads with both residual flags; types and layouts take turns.

    With these seeds greedy generation neither repeats a token for long nor comes near a tie.
    """
    head_sizes = {1: 33, 2: 16, 6: 8, 8: 4, 12: 4, 16: 4, 112: 2}
    seeds = [0, 7, 0, 1, 4, 2, 3, 5, 2, 1, 3, 0, 1, 3]
    for turn, (heads, post_layernorm) in enumerate(product(head_sizes, (False, True))):
        sizes = ts.Sizes(
            heads,
            head_sizes[heads],
            post_layernorm=post_layernorm,
            epsilon=1e-3 if turn % 4 == 3 else 1e-5,
            seed=seeds[turn],
        )
        yield Case(sizes, DTYPES[turn % 3], ts.LAYOUTS[turn // 3 % 3])


CASES = list(_cases())
