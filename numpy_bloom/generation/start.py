"""From prompts and options to continuations that share their passes."""

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from numpy_bloom.generation.batch import Batch
from numpy_bloom.generation.continuation import Continuation
from numpy_bloom.generation.drafts import Drafter
from numpy_bloom.generation.generation import GenerationInBatch
from numpy_bloom.generation.prompt_cache import PromptCache
from numpy_bloom.generation.sampling import SamplingOptions
from numpy_bloom.generation.text import TextStream
from numpy_bloom.model.forward import TokenIds
from numpy_bloom.model.runner import Runner


def start(
    model: Runner,
    tokenizer: Tokenizer | None,
    texts: Sequence[TokenIds],
    *,
    num_samples: int = 1,
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
    stop: Sequence[str],
    sampling: SamplingOptions,
    drafters: Sequence[Drafter],
    draft_tokens: int,
    prompt_cache: PromptCache | None,
) -> list[GenerationInBatch]:
    """Begin to continue some texts.

    Args:
        texts: their token ids; `num_samples` neighbours are the same.
        eos_token_ids: any of these ends a text.
        drafters: what guesses for each.
        prompt_cache: the file of the text, if there is but one.

    The others are those of `Bloom.generate_batch`.
    """
    seed = random_seed(sampling.seed)
    continuations: list[Continuation] = []
    for number, (ids, drafter) in enumerate(zip(texts, drafters, strict=True)):
        first = number - number % num_samples
        continuations.append(
            Continuation(
                ids.tolist(),
                max_new_tokens=max_new_tokens,
                eos_token_ids=eos_token_ids,
                text=TextStream(tokenizer, stop),
                sampling=sampling,
                seed=[seed, number],
                drafter=drafter,
                draft_tokens=draft_tokens,
                sources=continuations[first:],
                prompt_cache=prompt_cache,
            )
        )
    going_on = [text for text in continuations if text.finish_reason is None]
    batch = Batch(model, going_on)
    return [GenerationInBatch(batch, continuation) for continuation in continuations]


def random_seed(seed: int | None = None) -> int:
    """A number that draws depend on; without a seed another one each time."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
