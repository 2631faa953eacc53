"""The engines that are compared, one module each, imported only by the process that runs it.

Each module has `open_engine(path, threads, **options)`. What an engine reads, its libraries and its
options stand in `ENGINES`; `prepare.py` writes what they read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from numpy_bloom.weights.dtypes import Floats

OURS = "numpy-bloom"


SMALLER = {
    "bfloat16-packed": "bfloat16-packed",
    "int8": "int8",
    "int8-head-bfloat16": "int8",
    "int4": "int4",
}
"""Smaller copies of the model, and the `--dtype` of each; the first int8 has an int8 head."""


class Engine(Protocol):
    """A model that holds one sequence."""

    def reset(self, tokens: int) -> None:
        """Forget the sequence and make room for a new one of up to so many tokens."""

    def forward(self, token_ids: Sequence[int]) -> Floats:
        """One pass over new tokens, the whole prompt or one token: logits (V,) of the last."""


@dataclass(frozen=True)
class Source:
    """How to get an engine.

    Attributes:
        module: in this package.
        reads: file or folder within the prepared folder.
        needs: libraries that must be installed.
        options: for the module's `open_engine`.
        exact: whether its arithmetic is float32 throughout, as ours is.
    """

    module: str
    reads: str
    needs: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    exact: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is this project: it has a memory dial, and reads past the page cache."""
        return self.module == "ours"


TORCH = ("torch", "transformers")
ENGINES = {
    OURS: Source("ours", OURS, exact=True),
    **{f"{OURS}-{dtype}": Source("ours", f"{OURS}-{dtype}") for dtype in SMALLER},
    "transformers-float32": Source("whole", "checkpoint", TORCH, {"dtype": "float32"}, exact=True),
    "transformers-bfloat16": Source("whole", "checkpoint", TORCH, {"dtype": "bfloat16"}),
    "transformers-float16": Source("whole", "checkpoint", TORCH, {"dtype": "float16"}),
    "accelerate-disk": Source("disk_offload", "offload", (*TORCH, "accelerate")),
    "tutorial": Source("tutorial", "shards", TORCH),
    "llama.cpp": Source("llama", "model.gguf", ("llama_cpp",)),
}


def missing(name: str, prepared: Path) -> str | None:
    """Why an engine cannot run here, in a few words; None if it can."""
    source = ENGINES[name]
    absent = [library for library in source.needs if find_spec(library) is None]
    if absent:
        return f"{', '.join(absent)} not installed"
    if not (prepared / source.reads).exists():
        return f"{prepared / source.reads} does not exist; benchmarks/prepare.py makes it"
    return None


def open_engine(name: str, prepared: Path, threads: int, memory: str | None = None) -> Engine:
    """Open an engine in this process. `memory` is for ours."""
    source = ENGINES[name]
    options = source.options | ({"memory": memory} if memory and source.ours else {})
    module = import_module(f"engines.{source.module}")
    engine: Engine = module.open_engine(prepared / source.reads, threads, **options)
    return engine
