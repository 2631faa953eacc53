"""The object that users hold: a model, its tokenizer, and what one does with them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from numpy_bloom.errors import NumpyBloomError, OptionError, check_whole
from numpy_bloom.generation.batch import Batch
from numpy_bloom.generation.continuation import Continuation
from numpy_bloom.generation.drafts import PROMPT_LOOKUP, Drafter, DraftModel, PromptLookup
from numpy_bloom.generation.loop import Generation
from numpy_bloom.generation.sampling import SamplingOptions
from numpy_bloom.generation.text import TextStream
from numpy_bloom.model.config import BloomConfig, eos_token_ids
from numpy_bloom.model.forward import TokenIds
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
    if threads is not None:
        check_whole("threads", threads, 1)
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
        tokenizer: a `tokenizers.Tokenizer`; None if the folder has no tokenizer.json.
    """

    def __init__(self, folder: Path, memory: int, threads: int) -> None:
        read_manifest(folder)  # first of all: is it a converted model?
        self.config = _config(folder)
        self.tokenizer = _tokenizer(folder)
        self._folder = folder
        sizes = self.config.num_hidden_layers, self.config.hidden_size, self.config.vocab_size
        self.model = Model(self.config, WeightStore(Folder.open(folder, *sizes), threads), memory)

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
        self.model.close()

    def __call__(self, token_ids: npt.ArrayLike) -> Floats:
        """Logits of a text at every position.

        Args:
            token_ids: (T,) integers.

        Returns:
            (T, V) float32; row t scores the token after t.

        Raises:
            NumpyBloomError: an id is not in the vocabulary, there are none, or the memory does not
                suffice.
        """
        ids = token_id_array(token_ids, self.config)
        caches = self.model.prepare_one_pass(lengths=[len(ids)], logit_rows=len(ids))
        return self.model.run([ids], caches, last=[len(ids)])

    def score(self, token_ids: npt.ArrayLike) -> Floats:
        """How probable a text's tokens are, each after the ones before it.

        What the logits of `__call__` say too, but (T, V) logits are never made.

        Args:
            token_ids: (T,) integers.

        Returns:
            (T - 1,) float32; number t is the natural logarithm of the probability of token t + 1
            after tokens 0 to t.

        Raises:
            NumpyBloomError: an id is not in the vocabulary, there are none, or the memory does not
                suffice.
        """
        ids = token_id_array(token_ids, self.config)
        if len(ids) == 1:
            return np.empty(0, dtype=np.float32)
        context, targets = ids[:-1], ids[1:]
        caches = self.model.prepare_one_pass(lengths=[len(context)], target_rows=len(targets))
        return self.model.score([context], caches, [targets])

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Nothing is added; `</s>` in the text is its token.

        Raises:
            NumpyBloomError: the model's folder has no tokenizer, or the text is no valid Unicode.
        """
        if self.tokenizer is None:
            raise NumpyBloomError(
                f"{self._folder} has no tokenizer.json, which text needs; copy it there from the "
                "checkpoint, or give token ids"
            )
        try:
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError as error:  # of lone surrogates
            raise NumpyBloomError(f"the text is not valid Unicode: {error}") from error
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens included; empty without a tokenizer.

        Bytes that are no whole character become U+FFFD.
        """
        if self.tokenizer is None:
            return ""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=False))

    def generate(self, prompt: str | npt.ArrayLike, **options: Any) -> Generation:
        """Continue a prompt, token by token.

        Args:
            prompt: a text, or its token ids (T,).
            options: those of `generate_batch`: max_new_tokens, stop, temperature, top_k, top_p,
                min_p, repetition_penalty, seed, draft_model, draft_tokens.

        Returns:
            An iterator of `Token` (.id, .logprob, .text) that computes each one when it is asked
            for. It tells its `finish_reason` and `stats`.

        Raises:
            NumpyBloomError: an option is out of range, the prompt is empty, or an id is not in
                the vocabulary.
        """
        return self.generate_batch([prompt], **options)[0]

    def generate_batch(
        self,
        prompts: Sequence[str | npt.ArrayLike],
        *,
        num_samples: int = 1,
        max_new_tokens: int = 128,
        stop: Sequence[str] = (),
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        draft_model: "Bloom | str | None" = None,
        draft_tokens: int = 8,
    ) -> list[Generation]:
        """Continue several prompts together: each pass over the weights serves all of them.

        Args:
            prompts: texts, or their token ids (T,).
            num_samples: how many times each prompt is continued, which needs sampling.
            max_new_tokens: stop after so many.
            stop: stop before any of these texts.
            temperature, top_k, top_p, min_p, repetition_penalty, seed: how tokens are chosen, see
                `SamplingOptions`; greedily by default.
            draft_model: what guesses at tokens that a pass then verifies together: another model
                with the same vocabulary, or `prompt-lookup`, the text itself. The distribution of
                the continuations is the same as without. A model is held in memory whole, and what
                it takes is taken from the memory of this one.
            draft_tokens: most guesses at a time.

        Returns:
            For each prompt `num_samples` iterators of `Token`, see `generate`. Whichever is asked
            for a token, all of them go on.

        Raises:
            NumpyBloomError: an option is out of range, a prompt is empty, an id is not in the
                vocabulary, or the draft model has another vocabulary or does not fit.
        """
        check_whole("num_samples", num_samples, 1)
        check_whole("max_new_tokens", max_new_tokens, 1)
        check_whole("draft_tokens", draft_tokens, 1)
        sampling = SamplingOptions(
            temperature, top_k, top_p, min_p, repetition_penalty=repetition_penalty, seed=seed
        )
        if num_samples > 1 and sampling.effective_temperature == 0:
            raise OptionError(
                f"num_samples is {num_samples}, but greedy samples are all the same; give a "
                "temperature"
            )
        texts = [
            token_id_array(self.encode(prompt) if isinstance(prompt, str) else prompt, self.config)
            for prompt in prompts
            for _ in range(num_samples)
        ]
        if not texts:
            raise NumpyBloomError("there are no prompts; give at least one")
        capacities = [len(ids) + max_new_tokens - 1 for ids in texts]
        drafters = self._drafters(draft_model, capacities, sampling)
        entropy = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        continuations: list[Continuation] = []
        for number, (ids, drafter) in enumerate(zip(texts, drafters, strict=True)):
            first = number - number % num_samples
            continuations.append(
                Continuation(
                    ids.tolist(),
                    max_new_tokens=max_new_tokens,
                    eos_token_ids=self.config.eos_token_ids,
                    text=TextStream(self.tokenizer, stop),
                    sampling=sampling,
                    seed=[entropy, number],
                    drafter=drafter,
                    draft_tokens=draft_tokens,
                    source=continuations[first] if number > first else None,
                )
            )
        batch = Batch(self.model, continuations, draft_tokens if draft_model else 0)
        return [Generation(batch, continuation) for continuation in continuations]

    def _drafters(
        self, draft_model: "Bloom | str | None", capacities: list[int], sampling: SamplingOptions
    ) -> list[Drafter | None]:
        """What guesses for each text, of which at most so many tokens are ever cached."""
        if draft_model is None:
            return [None] * len(capacities)
        if draft_model == PROMPT_LOOKUP:
            return [PromptLookup() for _ in capacities]
        if not isinstance(draft_model, Bloom):
            raise OptionError(
                f"draft_model is {draft_model!r}; expected {PROMPT_LOOKUP!r} or a loaded model"
            )
        draft = draft_model.model
        if draft_model.config.vocab_size != self.config.vocab_size or (
            _vocabulary(draft_model.tokenizer) != _vocabulary(self.tokenizer)
        ):
            raise NumpyBloomError("the draft model has another vocabulary; choose another one")
        caches = draft.prepare(cache_tokens=capacities, pass_tokens=max(capacities), logit_rows=1)
        if draft.memory < draft.memory_for_all:
            raise NumpyBloomError(
                f"the draft model needs {draft.memory_for_all / 1e6:,.1f} MB of memory to be held "
                f"there whole, {draft.memory / 1e6:,.1f} MB may be used; choose a smaller one"
            )
        self.model.memory_elsewhere = draft.memory_for_all
        return [DraftModel(draft, cache, sampling) for cache in caches]


def _vocabulary(tokenizer: Tokenizer | None) -> dict[str, int] | None:
    return None if tokenizer is None else tokenizer.get_vocab()


def _config(folder: Path) -> BloomConfig:
    """The config, with the ends of text that generation_config.json may name."""
    values = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    config = BloomConfig.from_dict(values)
    if generation.is_file():
        name = f"{generation}: eos_token_id"
        eos = eos_token_ids(read_json(generation).get("eos_token_id"), name)
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


def token_id_array(ids: npt.ArrayLike, config: BloomConfig) -> TokenIds:
    """Token ids as a 1-D int64 array.

    Raises:
        NumpyBloomError: there are none, they are no integers, or one is not in the vocabulary.
    """
    try:
        array = np.asarray(ids)
    except ValueError as error:  # lists of different lengths
        raise NumpyBloomError(f"token ids must be a 1-D array: {error}") from error
    if array.ndim != 1:
        raise NumpyBloomError(f"token ids must be a 1-D array, got shape {array.shape}")
    if array.size == 0:
        raise NumpyBloomError("the prompt is empty; give at least one token")
    if not np.issubdtype(array.dtype, np.integer):
        raise NumpyBloomError(f"token ids must be integers, got {array.dtype}")
    wrong = array[(array < 0) | (array >= config.vocab_size)]
    if wrong.size:
        raise NumpyBloomError(
            f"token id {wrong[0]} is out of range; the model's are 0 to {config.vocab_size - 1}"
        )
    return array.astype(np.int64)
