"""The object that users hold: a model, its tokenizer, and what one does with them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
from tokenizers import Tokenizer

from numpy_bloom.errors import NumpyBloomError, OptionError, check_whole
from numpy_bloom.generation.beams import BeamOptions, BeamSearch
from numpy_bloom.generation.continuation import Token
from numpy_bloom.generation.drafts import PROMPT_LOOKUP, Drafter, DraftModel, PromptLookup
from numpy_bloom.generation.generation import Generation, GenerationInBatch, start
from numpy_bloom.generation.options import MOST_SEQUENCES, GenerationOptions
from numpy_bloom.generation.prompt_cache import resume_prompt_cache, start_prompt_cache
from numpy_bloom.generation.sampling import SamplingOptions
from numpy_bloom.generation.text import TextStream
from numpy_bloom.inputs import token_id_array
from numpy_bloom.study.trace import Trace, trace_steps
from numpy_bloom.text_model import TextModel


class Bloom(TextModel):
    """An opened BLOOM: what `TextModel` has, and ways to continue texts."""

    def generate(self, prompt: str | npt.ArrayLike, **options: Any) -> GenerationInBatch:
        """Continue a prompt, token by token.

        Args:
            prompt: a text, or its token ids (T,).
            options: those of `generate_batch`, but for num_samples.

        Returns:
            An iterator of `Token` (.id, .logprob, .text) that computes each one when it is asked
            for. It tells its `finish_reason` and `stats`.

        Raises:
            NumpyBloomError: an option is out of range, the prompt is empty, or an id is not in
                the vocabulary.
        """
        if "num_samples" in options:
            raise OptionError("num_samples is no option of generate; call generate_batch")
        return self.generate_batch([prompt], **options)[0]

    def generate_batch(
        self,
        prompts: Sequence[str | npt.ArrayLike],
        *,
        num_samples: int = 1,
        draft_model: "Bloom | str | None" = None,
        prompt_cache: str | Path | None = None,
        ignore_damaged_cache: bool = False,
        **options: Any,
    ) -> list[GenerationInBatch]:
        """Continue several prompts together: each pass over the weights serves all of them.

        Args:
            prompts: texts, or their token ids (T,).
            num_samples: how many times each prompt is continued, which needs sampling.
            draft_model: what guesses at tokens that a pass then verifies together: another model
                with the same vocabulary, or `prompt-lookup`, the text itself. The distribution of
                the continuations is the same as without. A model is held in memory whole, and what
                it takes is taken from the memory of this one.
            prompt_cache: a file that holds the text, with keys and values, after every pass; for
                one prompt only. If it is there, what its text has in common with the prompt is not
                computed again, and it is replaced. See `resume`.
            ignore_damaged_cache: do without what is damaged of that file; else that is an error.
            options: those of `GenerationOptions`: max_new_tokens, stop, temperature, top_k, top_p,
                min_p, repetition_penalty, seed, draft_tokens.

        Returns:
            For each prompt `num_samples` iterators of `Token`, see `generate`. Whichever is asked
            for a token, all of them go on.

        Raises:
            NumpyBloomError: an option is out of range, a prompt is empty, an id is not in the
                vocabulary, the draft model has another vocabulary or does not fit, or the file is
                damaged, of another model, or cannot be written.
        """
        if isinstance(prompts, str):
            raise OptionError("prompts is one text; give a list of them, or use generate")
        check_whole("num_samples", num_samples, 1, MOST_SEQUENCES)
        chosen = GenerationOptions(**options)
        if num_samples > 1 and chosen.is_greedy:
            raise OptionError(
                f"num_samples is {num_samples}, but greedy samples are all the same; give a "
                "temperature"
            )
        texts = [self.token_ids(prompt) for prompt in prompts for _ in range(num_samples)]
        if not texts:
            raise NumpyBloomError("there are no prompts; give at least one")
        cached = None
        if prompt_cache is not None:
            if len(texts) > 1:
                raise OptionError(f"prompt_cache is for one text, there are {len(texts)}")
            cached = start_prompt_cache(
                Path(prompt_cache),
                self.fingerprint,
                texts[0].tolist(),
                chosen,
                _draft_name(draft_model),
                ignore_damaged=ignore_damaged_cache,
            )
            chosen = cached.options
        return start(
            self.model,
            self.tokenizer,
            texts,
            chosen,
            self._drafters(draft_model, len(texts), chosen),
            num_samples=num_samples,
            prompt_cache=cached,
        )

    def trace_generation(
        self,
        prompt: str | npt.ArrayLike,
        *,
        names: str | None = None,
        max_new_tokens: int = GenerationOptions.max_new_tokens,
        **options: Any,
    ) -> Iterator[tuple[Token, Trace]]:
        """Continue a prompt as `generate` does, and trace the pass that gave each token.

        Args:
            prompt: a text, or its token ids (T,).
            names: of the stages to keep, as for `trace`.
            max_new_tokens: most new tokens.
            options: as for `generate`, but for guesses and files, with which a token is no pass.

        Returns:
            An iterator of each new token and its trace, of one token but for the first, which is of
            the prompt. Only its last position meets the vocabulary.

        Raises:
            NumpyBloomError: as for `generate` and `trace`.
        """
        refused = [
            name for name in ("draft_model", "prompt_cache", "num_samples") if options.get(name)
        ]
        if refused:
            raise OptionError(f"{refused[0]} cannot be given to trace_generation; leave it out")
        generation = self.generate(prompt, max_new_tokens=max_new_tokens, **options)
        return trace_steps(self.whole_model, generation, names, max_new_tokens)

    def resume(
        self,
        prompt_cache: str | Path,
        *,
        prompt: str | npt.ArrayLike | None = None,
        draft_model: "Bloom | str | None" = None,
        ignore_damaged_cache: bool = False,
        **options: Any,
    ) -> Generation:
        """Go on with a text that was cut off, as it would have gone on.

        Args:
            prompt_cache: the file that was given as `prompt_cache`. It says how the text began and
                what the options were.
            prompt: if given, must be as it was.
            draft_model: must be given if it was another model.
            ignore_damaged_cache: compute what is damaged of the file anew; else that is an error.
            options: if given, must be as they were.

        Returns:
            An iterator as from `generate`. It gives all new tokens, at once those that are there.

        Raises:
            NumpyBloomError: the file is not there, damaged, or of another model, an option differs,
                or the memory does not suffice.
        """
        cached = resume_prompt_cache(
            Path(prompt_cache), self.fingerprint, ignore_damaged=ignore_damaged_cache
        )
        if prompt is not None and self.token_ids(prompt).tolist() != cached.prompt_token_ids:
            raise NumpyBloomError(f"{prompt_cache} holds another prompt; leave this one out")
        if draft_model is None and cached.settings["draft_model"] is not None:
            if cached.settings["draft_model"] != PROMPT_LOOKUP:
                raise OptionError(
                    f"the text of {prompt_cache} was begun with a draft model; give it again"
                )
            draft_model = PROMPT_LOOKUP
        cached.check({**options, "draft_model": _draft_name(draft_model)})
        new = [token_id for token_id, _ in cached.new]
        ids = token_id_array(cached.prompt_token_ids + new, self.config)
        (generation,) = start(
            self.model,
            self.tokenizer,
            [ids[: len(cached.prompt_token_ids)]],
            cached.options,
            self._drafters(draft_model, 1, cached.options),
            prompt_cache=cached,
        )
        return generation

    def _drafters(
        self, draft_model: "Bloom | str | None", count: int, sampling: SamplingOptions
    ) -> Sequence[Drafter]:
        """What guesses for each of so many texts."""
        if draft_model is None:
            return [Drafter()] * count
        if draft_model == PROMPT_LOOKUP:
            return [PromptLookup()] * count
        if not isinstance(draft_model, Bloom):
            raise OptionError(
                f"draft_model is {draft_model!r}; expected {PROMPT_LOOKUP!r} or a loaded model"
            )
        if draft_model.config.vocab_size != self.config.vocab_size or (
            _vocabulary(draft_model.tokenizer) != _vocabulary(self.tokenizer)
        ):
            raise NumpyBloomError("the draft model has another vocabulary; choose another one")
        return [DraftModel(draft_model.model, sampling) for _ in range(count)]

    def beam_search(
        self,
        prompt: str | npt.ArrayLike,
        *,
        num_beams: int,
        max_new_tokens: int = GenerationOptions.max_new_tokens,
        length_penalty: float = 1.0,
        early_stopping: bool = False,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
    ) -> BeamSearch:
        """Continue a prompt with the likeliest text that a beam search finds.

        Each pass over the weights serves all beams. Their keys and values, the prompt's included,
        are held `num_beams` times.

        Args:
            prompt: a text, or its token ids (T,).
            num_beams: how many continuations are followed at once.
            max_new_tokens: of each.
            length_penalty, early_stopping, repetition_penalty: see `BeamOptions`.
            stop: the text that is found is cut before any of these.

        Returns:
            An iterator of `Token` as from `generate`, with a `score`. The first token comes when
            the search is over.

        Raises:
            NumpyBloomError: an option is out of range, the prompt is empty, an id is not in the
                vocabulary, or the memory does not suffice.
        """
        options = BeamOptions(
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            eos_token_ids=self.config.eos_token_ids,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            repetition_penalty=repetition_penalty,
        )
        ids = self.token_ids(prompt)
        return BeamSearch(self.model, ids.tolist(), TextStream(self.tokenizer, stop), options)


def _draft_name(draft_model: "Bloom | str | None") -> str | None:
    """What tells apart what guesses."""
    if isinstance(draft_model, Bloom):
        return str(draft_model.fingerprint["sha256"])
    return draft_model


def _vocabulary(tokenizer: Tokenizer | None) -> dict[str, int] | None:
    return None if tokenizer is None else tokenizer.get_vocab()
