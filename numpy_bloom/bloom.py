"""The object that users hold: a model, its tokenizer, and what one does with them."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy.typing as npt
from tokenizers import Tokenizer

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.generation.loop import Generation
from numpy_bloom.generation.sampling import SamplingOptions
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.model.forward import check_token_ids
from numpy_bloom.model.model import Model
from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.folder import Folder, read_json, read_manifest
from numpy_bloom.weights.store import WeightStore

DEMO = Path(__file__).parent / "demo"
"""The small model that ships with the package."""


def load(folder: str | Path | None = None) -> "Bloom":
    """Open a converted model. Use it in a `with` statement, or close it.

    Args:
        folder: what `python -m conversion` wrote. Default: the demo model.

    Raises:
        NumpyBloomError: the folder is no complete converted model.
    """
    return Bloom(DEMO if folder is None else Path(folder))


class Bloom:
    """An opened BLOOM.

    Attributes:
        config: its sizes.
        tokenizer: a `tokenizers.Tokenizer`; None if the folder has no tokenizer.json.
    """

    def __init__(self, folder: Path) -> None:
        read_manifest(folder)  # first of all: is it a converted model?
        self.config = _config(folder)
        self.tokenizer = _tokenizer(folder)
        self._folder = folder
        sizes = self.config.num_hidden_layers, self.config.hidden_size, self.config.vocab_size
        self._model = Model(self.config, WeightStore(Folder.open(folder, *sizes)))

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
        self._model.store.close()

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
        return self._model.run([ids], [self._model.cache(len(ids))], all_positions=True)

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
            self._model,
            self.tokenizer,
            check_token_ids(ids, self.config),
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
    if generation.is_file():
        eos = read_json(generation).get("eos_token_id")
        values["eos_token_id"] = values.get("eos_token_id") if eos is None else eos
    return BloomConfig.from_dict(values)


def _tokenizer(folder: Path) -> Tokenizer | None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise NumpyBloomError(f"cannot read {path}: {error}") from error
