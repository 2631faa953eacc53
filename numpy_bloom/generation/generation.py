"""Continuations as their user sees them: tokens one by one, and what they took."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.generation.batch import Batch
from numpy_bloom.generation.continuation import Continuation, Token
from numpy_bloom.generation.drafts import Drafter
from numpy_bloom.generation.options import GenerationOptions
from numpy_bloom.generation.prompt_cache import PromptCache
from numpy_bloom.generation.sampling import random_seed
from numpy_bloom.generation.text import TextStream
from numpy_bloom.model.forward import TokenIds
from numpy_bloom.model.passes import Tap
from numpy_bloom.running.memory import Needs
from numpy_bloom.running.runner import Runner
from numpy_bloom.weights.budget import peak_memory_bytes


@dataclass(frozen=True)
class Stats:
    """What a continuation took. A pass that several texts share counts for each of them; tokens
    that come from a file do not count.

    Attributes:
        passes: passes over the weights.
        tokens_per_pass: new tokens of each; more than 1 where guesses held.
        prefill_seconds: of the first pass, which takes in the prompt, or a text that goes on.
        decode_seconds: of all passes after it.
        tokens_per_second: of those; 0 if there was none.
        weight_bytes_pinned: weights in memory before the first pass.
        weight_bytes_read: weights read from disk by all passes together.
        peak_memory_bytes: largest resident memory of the process so far.
    """

    passes: int
    tokens_per_pass: float
    prefill_seconds: float
    decode_seconds: float
    tokens_per_second: float
    weight_bytes_pinned: int
    weight_bytes_read: int
    peak_memory_bytes: int


class Generation(Iterator[Token], ABC):
    """The new tokens of one prompt, computed as they are asked for.

    Attributes:
        prompt_token_ids: the prompt.
    """

    def __init__(self, continuation: Continuation) -> None:
        self.prompt_token_ids = continuation.prompt_token_ids
        self._continuation = continuation

    @abstractmethod
    def _next_token(self) -> Token | None:
        """The next token; None if there is none."""

    def __next__(self) -> Token:
        token = self._next_token()
        if token is None:
            raise StopIteration
        return token

    @property
    def token_ids(self) -> list[int]:
        """The new tokens so far; an end-of-text token is among them."""
        return self._continuation.token_ids

    @property
    def text(self) -> str:
        """The text of them that is certain so far; all of it when the continuation has ended."""
        return self._continuation.text

    @property
    def finish_reason(self) -> str | None:
        """Why it ended: "length", "eos" or "stop"; None before."""
        return self._continuation.finish_reason

    @property
    def stats(self) -> Stats:
        """What it took so far."""
        passes = self._continuation.passes
        prefill = sum(one.seconds for one in passes[:1])
        decode = sum(one.seconds for one in passes[1:])
        new = len(self.token_ids) - self._continuation.restored
        later = new - self._continuation.first_tokens
        return Stats(
            passes=len(passes),
            tokens_per_pass=new / len(passes) if passes else 0.0,
            prefill_seconds=prefill,
            decode_seconds=decode,
            tokens_per_second=later / decode if decode else 0.0,
            weight_bytes_pinned=passes[0].bytes_pinned if passes else 0,
            weight_bytes_read=sum(one.bytes_read for one in passes),
            peak_memory_bytes=peak_memory_bytes(),
        )


class GenerationInBatch(Generation):
    """Other prompts of the same batch go on with each pass, and keep their tokens until they are
    asked for."""

    def __init__(self, batch: Batch, continuation: Continuation) -> None:
        super().__init__(continuation)
        self._batch = batch

    def _next_token(self) -> Token | None:
        return self._batch.next_token(self._continuation)

    def watch(self, tap: Tap) -> None:
        """Show the stages of all passes to come to an onlooker, in place of the one before."""
        self._batch.tap = tap


def start(
    model: Runner,
    tokenizer: Tokenizer | None,
    texts: Sequence[TokenIds],
    options: GenerationOptions,
    drafters: Sequence[Drafter],
    *,
    num_samples: int = 1,
    prompt_cache: PromptCache | None = None,
) -> list[GenerationInBatch]:
    """Begin to continue some texts, in the same passes.

    Args:
        model: continues them.
        tokenizer: makes text of their tokens.
        texts: their token ids; `num_samples` neighbours are the same.
        options: how they go on.
        drafters: what guesses for each.
        num_samples: how many continuations of each prompt there are.
        prompt_cache: the file of the text, if there is but one.

    Raises:
        NumpyBloomError: the memory does not suffice for one of them.
    """
    seed = random_seed(options.seed)
    continuations: list[Continuation] = []
    for number, (ids, drafter) in enumerate(zip(texts, drafters, strict=True)):
        continuations.append(
            Continuation(
                ids.tolist(),
                options,
                eos_token_ids=model.config.eos_token_ids,
                text=TextStream(tokenizer, options.stop),
                seed=[seed, number],
                drafter=drafter,
                twin=continuations[-1] if number % num_samples else None,
                prompt_cache=prompt_cache,
            )
        )
    if len(texts) > num_samples:
        _check_longest(model, continuations, num_samples)
    batch = Batch(model, [text for text in continuations if text.finish_reason is None])
    return [GenerationInBatch(batch, text) for text in continuations]


def _check_longest(model: Runner, texts: Sequence[Continuation], num_samples: int) -> None:
    """Have a prompt that does not fit refused before others have taken their time."""
    place = max(range(len(texts)), key=lambda place: texts[place].cache_tokens)
    text = texts[place]
    tokens = len(text.prompt_token_ids) + text.most_guesses
    try:
        model.prepare(Needs([text.cache_tokens], tokens, logit_rows=text.most_rows))
    except NumpyBloomError as error:
        raise NumpyBloomError(f"prompt {place // num_samples + 1}: {error}") from error
