"""A model with its tokenizer: from texts to tokens, to logits, to scores."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.generation.prompt_cache import fingerprint
from numpy_bloom.inputs import token_id_array
from numpy_bloom.model.config import BloomConfig, read_config
from numpy_bloom.model.forward import TokenIds
from numpy_bloom.running.memory import Needs
from numpy_bloom.running.model import Model
from numpy_bloom.running.runner import Runner
from numpy_bloom.study.capture import Edit
from numpy_bloom.study.trace import Trace, run_traced
from numpy_bloom.study.variants import run_variants
from numpy_bloom.tokenizer import decode, encode, read_tokenizer
from numpy_bloom.weights.dtypes import Floats
from numpy_bloom.weights.manifest import ARRAYS_SUFFIX, check_sizes, read_manifest

Self = TypeVar("Self", bound="TextModel")


class TextModel:
    """An opened BLOOM: tokens, logits, scores.

    Args:
        folder: of the converted model.
        open_model: opens its weights.

    Attributes:
        config: its sizes.
        model: its weights, to run passes with.
        tokenizer: a `tokenizers.Tokenizer`; None if the folder has no tokenizer.json.
        fingerprint: tells it apart from other models.
    """

    model: Runner

    def __init__(self, folder: Path, open_model: Callable[[Path, BloomConfig], Runner]) -> None:
        manifest = read_manifest(folder)  # first of all: is it a converted model?
        self.config = read_config(folder)
        self.fingerprint = fingerprint(manifest, self.config)
        texts = {n: e for n, e in manifest["files"].items() if not n.endswith(ARRAYS_SUFFIX)}
        check_sizes(folder, texts)
        self.tokenizer = read_tokenizer(folder, self.config.vocab_size)
        self._folder = folder
        self.model = open_model(folder, self.config)

    def __enter__(self: Self) -> Self:
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
        self.model.close()

    def __call__(self, token_ids: str | npt.ArrayLike) -> Floats:
        """Logits of a text at every position.

        Args:
            token_ids: (T,) integers, or a text.

        Returns:
            (T, V) float32; row t scores the token after t.

        Raises:
            NumpyBloomError: an id is not in the vocabulary, there are none, or the memory does not
                suffice.
        """
        ids = self.token_ids(token_ids)
        caches = self.model.prepare(Needs.of_one_pass([len(ids)], logit_rows=len(ids)))
        return self.model.run([ids], caches, last=[len(ids)])

    def score(self, token_ids: str | npt.ArrayLike) -> Floats:
        """How probable a text's tokens are, each after the ones before it.

        What the logits of `__call__` say too, but (T, V) logits are never made.

        Args:
            token_ids: (T,) integers, or a text.

        Returns:
            (T - 1,) float32; number t is the natural logarithm of the probability of token t + 1
            after tokens 0 to t.

        Raises:
            NumpyBloomError: an id is not in the vocabulary, there are none, or the memory does not
                suffice.
        """
        ids = self.token_ids(token_ids)
        if len(ids) == 1:
            return np.empty(0, dtype=np.float32)
        context, targets = ids[:-1], ids[1:]
        caches = self.model.prepare(Needs.of_one_pass([len(context)], target_rows=len(targets)))
        return self.model.score([context], caches, [targets])

    def trace(
        self,
        token_ids: str | npt.ArrayLike,
        *,
        names: str | None = None,
        folder: str | Path | None = None,
        edits: Mapping[str, Edit] | None = None,
    ) -> tuple[Floats, Trace]:
        """Logits of a text at every position, and every stage on the way to them.

        Args:
            token_ids: (T,) integers, or a text.
            names: of the stages to keep, as patterns of file names with commas between, such as
                `blocks.*.attn.pattern,logits`. Default: all.
            folder: where each stage is written as `NAME.npy` when it is complete; memory then holds
                one block's stages at most. Default: they are kept in memory.
            edits: by name, a function that gets a stage and returns what the model is to go on
                with.

        Returns:
            (T, V) float32, the same bits as those of a call without a trace, and the trace.

        Raises:
            NumpyBloomError: a name is no stage, the folder cannot be written, an edit returns
                another shape, an id is not in the vocabulary, or the memory does not suffice.
        """
        ids = self.token_ids(token_ids)
        path = None if folder is None else Path(folder)
        return run_traced(self.whole_model, ids, names=names, folder=path, edits=edits)

    def variants(
        self, token_ids: str | npt.ArrayLike, variants: Sequence[Mapping[str, Edit]]
    ) -> Floats:
        """Logits after a text, for several ways of changing stages, in one pass over the weights.

        Args:
            token_ids: (T,) integers, or a text.
            variants: B times edits by name, as for `trace`; an empty one changes nothing.

        Returns:
            (B, V) float32, of the last token.

        Raises:
            NumpyBloomError: as for `trace`.
        """
        return run_variants(self.whole_model, self.token_ids(token_ids), variants)

    @property
    def whole_model(self) -> Model:
        """The model, if all its blocks are in this process.

        Raises:
            NumpyBloomError: they are not.
        """
        if not isinstance(self.model, Model):
            raise NumpyBloomError(
                "traces, edits and measurements need all blocks in one process; load the model "
                "without cluster"
            )
        return self.model

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Nothing is added; `</s>` in the text is its token.

        Raises:
            NumpyBloomError: the model's folder has no tokenizer, or the text is no valid Unicode.
        """
        if self.tokenizer is None:
            raise NumpyBloomError(
                f"{self._folder} has no tokenizer.json, which text needs; convert a checkpoint "
                "that has one, or give token ids, from Python"
            )
        return encode(self.tokenizer, text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens included; empty without a tokenizer.

        Bytes that are no whole character become U+FFFD.

        Raises:
            NumpyBloomError: one is not in the vocabulary.
        """
        ids = [] if len(token_ids) == 0 else token_id_array(token_ids, self.config).tolist()
        return decode(self.tokenizer, ids)

    def token_ids(self, prompt: str | npt.ArrayLike) -> TokenIds:
        """Token ids (T,) int64 of a text or of what should be token ids already.

        Raises:
            NumpyBloomError: there are none, or one is not in the vocabulary.
        """
        return token_id_array(
            self.encode(prompt) if isinstance(prompt, str) else prompt, self.config
        )
