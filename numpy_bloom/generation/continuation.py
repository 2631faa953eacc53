"""One text that is being continued: what it feeds to a pass, and what it makes of the logits."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from numpy_bloom.generation.drafts import NO_DRAFT, Drafter
from numpy_bloom.generation.options import GenerationOptions
from numpy_bloom.generation.prompt_cache import PromptCache
from numpy_bloom.generation.sampling import (
    draw,
    likeliest,
    log_probability,
    next_token_distribution,
    verify,
)
from numpy_bloom.generation.text import TextStream
from numpy_bloom.model.forward import TokenIds
from numpy_bloom.running.runner import Runner, SequenceCache
from numpy_bloom.weights.dtypes import Floats


@dataclass(frozen=True)
class Token:
    """One generated token.

    Attributes:
        id: its number.
        logprob: natural logarithm of its probability under the model itself, before any option
            changes the distribution.
        text: the text that is certain with it; may be empty, or belong to earlier tokens.
    """

    id: int
    logprob: float
    text: str


@dataclass(frozen=True)
class PassStats:
    """What one pass took: its seconds, the bytes of weights read from disk, and of those pinned."""

    seconds: float
    bytes_read: int
    bytes_pinned: int

    @classmethod
    def since(cls, start: float, bytes_read: int, model: Runner) -> "PassStats":
        """Of a pass that is over.

        Args:
            start: when it began, by `time.perf_counter`.
            bytes_read: `model.bytes_read` at that time.
        """
        seconds = time.perf_counter() - start
        return cls(seconds, model.bytes_read - bytes_read, model.bytes_pinned)


class _Said(NamedTuple):
    """A new token, and why the text ends with it, if it does."""

    token: Token
    finish_reason: str | None


class Continuation:
    """A prompt and its continuation so far.

    Args:
        prompt_token_ids: not empty.
        options: how it goes on.
        eos_token_ids: it ends after any of these.
        text: makes text of the new tokens.
        seed: the draw at each place of the text depends on these numbers and that place alone.
        drafter: guesses; none by default.
        twin: the one before it of the same prompt. It can take keys and values of that one, or of
            that one's twin, and so on.
        prompt_cache: its file, if it is to have one. The tokens in it are `ready` at once.

    Attributes:
        prompt_token_ids, token_ids, text, finish_reason: see `Generation`.
        cache: keys and values of the tokens before the last one; None before and after its passes.
        drafter: guesses.
        passes: those in which it took part.
        restored: how many of its new tokens come from its file.
        first_tokens: how many come from its first pass.
    """

    def __init__(
        self,
        prompt_token_ids: list[int],
        options: GenerationOptions,
        *,
        eos_token_ids: Sequence[int],
        text: TextStream,
        seed: Sequence[int],
        drafter: Drafter | None = None,
        twin: "Continuation | None" = None,
        prompt_cache: PromptCache | None = None,
    ) -> None:
        self.prompt_token_ids = prompt_token_ids
        # All that is known of the new tokens is here, and grows at once: Ctrl-C loses none of it.
        self._said: list[_Said] = []
        self._taken = 0
        self.cache: SequenceCache | None = None
        self.passes: list[PassStats] = []
        self._twin = twin
        self._options = options
        self._eos_token_ids = eos_token_ids
        self._text = text
        self._text_tokens = 0  # that it has seen; -1 while it is being changed
        self._seed = seed
        self.drafter = drafter or Drafter()
        self._guesses = options.draft_tokens
        self._draft = NO_DRAFT
        self._prompt_cache = prompt_cache
        if prompt_cache is not None:
            self._guesses = prompt_cache.guesses
            self.add(prompt_cache.new)
            if self.finish_reason is not None:
                prompt_cache.close()
        self.restored = len(self._said)
        self.first_tokens = 1

    @property
    def token_ids(self) -> list[int]:
        return [said.token.id for said in self._said]

    @property
    def text(self) -> str:
        return "".join(said.token.text for said in self._said)

    @property
    def finish_reason(self) -> str | None:
        return self._said[-1].finish_reason if self._said else None

    @property
    def is_ready(self) -> bool:
        """Whether there is a new token that nobody has taken yet."""
        return self._taken < len(self._said)

    def take_token(self) -> Token:
        self._taken += 1
        return self._said[self._taken - 1].token

    @property
    def cache_tokens(self) -> int:
        """Tokens that its cache must hold. The last new token is never fed back."""
        return len(self.prompt_token_ids) + self._options.max_new_tokens - 1

    @property
    def uncached_tokens(self) -> int:
        """Tokens that its cache lacks yet: those that its next pass must take in."""
        assert self.cache is not None
        return len(self.prompt_token_ids) + len(self.token_ids) - self.cache.length

    @property
    def most_guesses(self) -> int:
        """Guesses that it makes at a time, at most."""
        return self._options.draft_tokens if self.drafter.rows else 0

    @property
    def most_rows(self) -> int:
        """Rows of V that a pass holds for it, at most: its logits, and what guesses take."""
        return 1 + self.most_guesses * self.drafter.rows

    @property
    def source(self) -> SequenceCache | None:
        """Where the keys and values of its prompt are, or come with the next pass."""
        twin = self._twin
        while twin is not None and twin.cache is None:
            twin = twin._twin
        return None if twin is None else twin.cache

    @property
    def known_tokens(self) -> int:
        """Tokens whose keys and values are there before its first pass."""
        if self.source is not None:
            return len(self.prompt_token_ids) - 1  # the last one's logits are wanted
        return 0 if self._prompt_cache is None else self._prompt_cache.tokens

    def begin(self, cache: SequenceCache) -> None:
        """Take a cache, and what is known to be in it.

        Raises:
            NumpyBloomError: the file is damaged, or another one cannot be written.
        """
        if self.source is not None:
            cache.copy_prefix(self.source, self.known_tokens)
        elif self._prompt_cache is not None:
            self._prompt_cache.begin(cache)
        self.cache = cache

    def end(self) -> None:
        """Hold nothing any more: it has left its batch, or not joined it."""
        self.cache, self._draft = None, NO_DRAFT
        self.drafter.end()

    def save(self) -> None:
        """Write what has come to the file, if there is one. If it fails, it can be repeated.

        Raises:
            NumpyBloomError: the disk is full, or it fails.
        """
        if self._prompt_cache is not None and self.cache is not None:
            logprobs = [said.token.logprob for said in self._said]
            self._prompt_cache.save(self.cache, self.token_ids, logprobs, self._guesses)
            if self.finish_reason is not None:
                self._prompt_cache.close()

    def feed(self) -> TokenIds:
        """The tokens of its next pass: what the cache lacks, then a guess at what follows."""
        assert self.cache is not None
        ids = self.prompt_token_ids + self.token_ids
        self._draft = NO_DRAFT
        # The last token of all needs no guess: it comes with the pass in any case.
        count = min(self._guesses, self._options.max_new_tokens - len(self.token_ids) - 1)
        if self.token_ids and count > 0:
            self._draft = self.drafter.propose(ids, count, self._random(len(ids), drafting=True))
        return np.array(ids[self.cache.length :] + self._draft.ids, dtype=np.int64)

    @property
    def rows(self) -> int:
        """How many of the last tokens it feeds must meet the vocabulary."""
        return len(self._draft.ids) + 1

    def take(self, logits: Floats) -> None:
        """Go on by what a pass has found: the guesses that hold, and one token more.

        Nothing is changed before all of them are chosen, so a pass can be repeated that was cut
        short by Ctrl-C.

        Args:
            logits: (rows, V) float32.
        """
        assert self.cache is not None
        chosen = self._choose(logits)
        self.add(chosen)
        if not self.passes:
            self.first_tokens = len(self._said) - self.restored
        self.cache.length = len(self.prompt_token_ids) + len(self.token_ids) - 1
        self._adapt(len(chosen) - 1)

    def add(self, chosen: Sequence[tuple[int, float]]) -> None:
        """Go on by some tokens, or by those of them up to the last one of the text.

        Args:
            chosen: each with its log-probability.
        """
        if self._text_tokens != len(self._said):
            self._text.restart(self.token_ids)
        self._text_tokens = -1
        new: list[_Said] = []
        for token_id, logprob in chosen:
            text, reason = self._read(token_id, len(self._said) + len(new) + 1)
            new.append(_Said(Token(token_id, logprob, text), reason))
            if reason is not None:
                break
        self._said.extend(new)
        self._text_tokens = len(self._said)

    def _choose(self, logits: Floats) -> list[tuple[int, float]]:
        """The next tokens, each with its log-probability."""
        ids = self.prompt_token_ids + self.token_ids
        chosen: list[tuple[int, float]] = []
        guesses = zip(self._draft.ids, self._draft.distributions, strict=True)
        for row in logits:
            guess, guessed_with = next(guesses, (None, None))
            token_id = self._choose_one(row, ids, guess, guessed_with)
            ids.append(token_id)
            chosen.append((token_id, log_probability(row, token_id)))
            if token_id != guess or token_id in self._eos_token_ids:
                break
        return chosen

    def _choose_one(
        self, logits: Floats, ids: list[int], guess: int | None, guessed_with: Floats | None
    ) -> int:
        """The token after some others, by its logits (V,)."""
        if self._options.is_greedy:
            return likeliest(logits, ids, self._options)
        probabilities = next_token_distribution(logits, ids, self._options)
        random = self._random(len(ids))
        if guess is None:
            return draw(probabilities, random)
        return verify(probabilities, guess, guessed_with, random)

    def _random(self, place: int, *, drafting: bool = False) -> "np.random.Generator":
        """What the token at one place of the text, or the guess at it, is drawn with."""
        return np.random.default_rng([*self._seed, place, drafting])

    def _read(self, token_id: int, place: int) -> tuple[str, str | None]:
        """Take one more token; the text that is certain with it, and why it is the last, if so.

        Args:
            place: how many new tokens there are with it.
        """
        text, reason = "", None
        if token_id in self._eos_token_ids:
            reason = "eos"
        else:
            text = self._text.step(token_id)
            if place == self._options.max_new_tokens:
                reason = "length"
        if reason is not None:
            text += self._text.finish()
        return text, "stop" if self._text.stopped else reason

    def _adapt(self, held: int) -> None:
        """Guess twice as many as held next time, within what is allowed."""
        if self._draft.ids:
            more = 2 * held if held < len(self._draft.ids) else 2 * self._guesses
            self._guesses = max(1, min(more, self._options.draft_tokens))
