"""The object that users hold: a model, its tokenizer, and what one does with them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy.typing as npt
from tokenizers import Tokenizer

from numpy_bloom.errors import NumpyBloomError, OptionError
from numpy_bloom.generation.loop import Generation
from numpy_bloom.generation.sampling import SamplingOptions
from numpy_bloom.model.config import BloomConfig, token_ids
from numpy_bloom.model.forward import check_token_ids
from numpy_bloom.model.model import Model
from numpy_bloom.weights.budget import default_memory, default_threads, parse_size
from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.folder import Folder, read_json, read_manifest
from numpy_bloom.weights.store import WeightStore

DEMO = Path(__file__).parent / "demo"
"""The small model that ships with the package."""


def load(
    folder: str | Path | None = None,
    *,
    memory: str | int | None = None,
    threads: int | None = None,
) -> "Bloom":
    """Open a converted model. Use it in a `with` statement, or close it.

    Args:
        folder: what `python -m conversion` wrote. Default: the demo model.
        memory: for weights, key-value caches, buffers and activations together, such as `2GB`;
            weights that do not fit are read from disk in every pass. Default: what this process
            has available, less a margin.
        threads: how many compute. Default: the cores available to this process.

    Raises:
        NumpyBloomError: the folder is no complete converted model, or an option is out of range.
    """
    if threads is not None and threads < 1:
        raise OptionError(f"threads is {threads}; expected a value in [1, inf), whole")
    return Bloom(
        DEMO if folder is None else Path(folder),
        default_memory() if memory is None else parse_size(memory),
        default_threads() if threads is None else threads,
    )


class Bloom:
    """An opened BLOOM.

    Attributes:
        config: its sizes.
        model: its weights, to run passes with.
        memory: bytes that it may use.
        tokenizer: a `tokenizers.Tokenizer`; None if the folder has no tokenizer.json.
    """

    def __init__(self, folder: Path, memory: int, threads: int) -> None:
        read_manifest(folder)  # first of all: is it a converted model?
        self.config = _config(folder)
        self.tokenizer = _tokenizer(folder)
        self._folder = folder
        self.memory = memory
        sizes = self.config.num_hidden_layers, self.config.hidden_size, self.config.vocab_size
        self.model = Model(self.config, WeightStore(Folder.open(folder, *sizes), threads))

    def __enter__(self) -> "Bloom":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back files and memory. The model cannot be used afterwards."""
        self.model.store.close()

    def __call__(self, token_ids: npt.ArrayLike) -> Floats:
        """Logits of a text at every position.

        Args:
            token_ids: (T,) integers.

        Returns:
            (T, V) float32; row t scores the token after t.

        Raises:
            NumpyBloomError: an id is not in the vocabulary, or there are none.
        """
        ids = check_token_ids(token_ids, self.config)
        self.model.prepare(
            self.memory, cache_tokens=len(ids), pass_tokens=len(ids), logit_rows=len(ids)
        )
        return self.model.run([ids], [self.model.cache(len(ids))], all_positions=True)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Nothing is added; `</s>` in the text is its token.

        Raises:
            NumpyBloomError: the model's folder has no tokenizer.
        """
        if self.tokenizer is None:
            raise NumpyBloomError(
                f"{self._folder} has no tokenizer.json, which text needs; copy it there from the "
                "checkpoint, or give token ids"
            )
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens included; empty without a tokenizer.

        Bytes that are no whole character become U+FFFD.
        """
        if self.tokenizer is None:
            return ""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=False))

    def generate(
        self,
        prompt: str | npt.ArrayLike,
        *,
        max_new_tokens: int = 128,
        stop: Sequence[str] = (),
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
    ) -> Generation:
        """Continue a prompt, token by token.

        Args:
            prompt: a text, or its token ids (T,).
            max_new_tokens: stop after so many.
            stop: stop before any of these texts.
            temperature, top_k, top_p, min_p, repetition_penalty, seed: how tokens are chosen, see
                `SamplingOptions`; greedily by default.

        Returns:
            An iterator of `Token` (.id, .logprob, .text) that computes each one when it is asked
            for. It tells its `finish_reason` and `stats`.

        Raises:
            NumpyBloomError: an option is out of range, the prompt is empty, or an id is not in
                the vocabulary.
        """
        ids = self.encode(prompt) if isinstance(prompt, str) else prompt
        return Generation(
            self.model,
            self.tokenizer,
            check_token_ids(ids, self.config),
            memory=self.memory,
            max_new_tokens=max_new_tokens,
            stop=stop,
            sampling=SamplingOptions(
                temperature, top_k, top_p, min_p, repetition_penalty=repetition_penalty, seed=seed
            ),
        )


def _config(folder: Path) -> BloomConfig:
    """The config, with the ends of text that generation_config.json may name."""
    values = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    config = BloomConfig.from_dict(values)
    if generation.is_file():
        name = f"{generation}: eos_token_id"
        eos = token_ids(read_json(generation).get("eos_token_id"), name)
        config = replace(config, eos_token_ids=eos or config.eos_token_ids)
    return config


def _tokenizer(folder: Path) -> Tokenizer | None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise NumpyBloomError(f"cannot read {path}: {error}") from error
