"""A prompt cache, one text in a file: what is taken over from there, and what goes there."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from numpy_bloom.errors import NumpyBloomError, OptionError, failing_as, listing
from numpy_bloom.generation.drafts import common_prefix
from numpy_bloom.generation.options import GenerationOptions
from numpy_bloom.generation.prompt_cache_file import PromptCacheFile
from numpy_bloom.generation.prompt_cache_layout import DamagedError
from numpy_bloom.generation.sampling import random_seed
from numpy_bloom.generation.text import stop_texts
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.running.runner import SequenceCache
from numpy_bloom.weights.manifest import ARRAYS_SUFFIX

ABOUT = ("model", "prompt_tokens", "taken_over")
SETTINGS = (*(field.name for field in fields(GenerationOptions)), "draft_model")
"""What a file says of its text, and of how it goes on."""

Fingerprint = dict[str, Any]
"""What tells models apart, see `fingerprint`."""


@dataclass
class PromptCache:
    """One text and its file, which is to hold it after every pass. See `start_prompt_cache` and
    `resume_prompt_cache`.

    Attributes:
        path: of the file.
        about: what the file says, or is to say, of the text.
        prompt_token_ids: the prompt.
        new: tokens that are there already, each with its log-probability.
        guesses: that may be made in the next pass, at most.
        file: where keys and values come from, if there is any; from `begin` on, where they go.
        wanted: how many tokens' keys and values are to be taken over.
        goes_on: whether the text goes on in the file that it comes from.
        ignore_damaged: take over only those that come before the first damaged ones.
    """

    path: Path
    about: dict[str, Any]
    prompt_token_ids: list[int]
    new: list[tuple[int, float]]
    guesses: int
    file: PromptCacheFile | None
    wanted: int
    goes_on: bool
    ignore_damaged: bool

    @property
    def settings(self) -> Mapping[str, Any]:
        """How the text goes on: options of `Bloom.generate` by name, as JSON has them."""
        settings: Mapping[str, Any] = self.about["settings"]
        return settings

    @property
    def options(self) -> GenerationOptions:
        """The same, without what guesses."""
        names = [field.name for field in fields(GenerationOptions)]
        return GenerationOptions(**{name: self.settings[name] for name in names})

    @property
    def tokens(self) -> int:
        """Keys and values that are there for certain, as far as can be told before `begin`."""
        return 0 if self.ignore_damaged else self.wanted

    def begin(self, cache: SequenceCache) -> None:
        """Take over keys and values, and see that there is a file to write to.

        Args:
            cache: of the text, empty.

        Raises:
            NumpyBloomError: what is taken over is damaged, or the file cannot be written.
        """
        if self.file is not None:
            with failing_as(f"cannot read {self.path}"):
                self.file.load(cache, self.wanted, ignore_damaged=self.ignore_damaged)
        if self.goes_on:
            assert self.file is not None
            self.file.cut()
            return
        old, ids = self.file, self.prompt_token_ids
        about = {**self.about, "taken_over": cache.length}
        new = PromptCacheFile.create(
            self.path, about, len(ids) + self.settings["max_new_tokens"], cache
        )
        try:
            with failing_as(f"cannot write {self.path}"):
                new.save(cache, ids, [0.0] * len(ids), self.guesses)
            new.publish()
        except BaseException:
            new.discard()
            raise
        self.file = new
        if old is not None:
            old.close()

    def save(
        self,
        cache: SequenceCache,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        guesses: int,
    ) -> None:
        """Write what has come since the last time. If it fails, it can be repeated.

        Args:
            cache: the keys and values of the text.
            token_ids, logprobs: of all new tokens.
            guesses: that may be made in the next pass.

        Raises:
            NumpyBloomError: the disk is full, or it fails, or another run has the name.
        """
        assert self.file is not None
        ids = [*self.prompt_token_ids, *token_ids]
        way_out = "; it holds the text up to here: make room, and resume it"
        with failing_as(f"cannot write {self.path}", way_out):
            self.file.check_name()
            self.file.save(cache, ids, [*[0.0] * len(self.prompt_token_ids), *logprobs], guesses)

    def check(self, given: Mapping[str, Any]) -> None:
        """Compare options that are given with those that the text was begun with.

        Raises:
            OptionError: one differs.
        """
        for name, value in given.items():
            if name not in self.settings:
                raise OptionError(f"{name} is no option of a text that goes on; leave it out")
            wanted = stop_texts(value) if name == "stop" else value
            if wanted != self.settings[name]:
                raise OptionError(
                    f"{name} is {wanted!r}, but the text of {self.path} was begun with "
                    f"{self.settings[name]!r}; leave it out"
                )

    def close(self) -> None:
        """The text has ended: let others have the file.

        Raises:
            NumpyBloomError: the disk fails.
        """
        assert self.file is not None
        self.file.sync()
        self.file.close()


def start_prompt_cache(
    path: Path,
    model: Fingerprint,
    prompt_token_ids: list[int],
    options: GenerationOptions,
    draft_model: str | None,
    *,
    ignore_damaged: bool,
) -> PromptCache:
    """A text that begins. It takes over what it has in common with the text that is in the file.

    Args:
        path: of the file, which need not be there.
        model: that continues it.
        prompt_token_ids: the prompt.
        options: how it goes on; without a seed it gets one, which it may have to go on with.
        draft_model: tells apart what guesses.
        ignore_damaged: do without what is damaged.

    Raises:
        NumpyBloomError: the file is damaged, something else, of another model, or in use.
    """
    path = path.resolve()  # a link stays a link
    file = None
    if path.exists():
        try:
            file = _opened(path, model, write=False, ignore_damaged=ignore_damaged)
        except DamagedError:
            if not ignore_damaged:
                raise
    wanted = 0
    if file is not None:
        # The last token of the prompt is computed in any case: its logits are wanted.
        wanted = min(common_prefix(file.ids, prompt_token_ids[:-1]), _cached(file))
    if options.seed is None:
        options = replace(options, seed=random_seed())
    settings = asdict(options) | {"stop": stop_texts(options.stop), "draft_model": draft_model}
    about = {"model": model, "settings": settings, "prompt_tokens": len(prompt_token_ids)}
    guesses = options.draft_tokens
    return PromptCache(
        path, about, prompt_token_ids, [], guesses, file, wanted, False, ignore_damaged
    )


def resume_prompt_cache(path: Path, model: Fingerprint, *, ignore_damaged: bool) -> PromptCache:
    """A text that goes on.

    Args:
        path: of its file.
        model: that continues it.
        ignore_damaged: compute keys and values anew that are damaged, and tokens as well.

    Raises:
        NumpyBloomError: the file is not there, damaged, something else, of another model, or in
            use.
    """
    path = path.resolve()
    try:
        file = _opened(path, model, write=True, ignore_damaged=ignore_damaged)
    except DamagedError as error:
        if not ignore_damaged:
            raise
        raise NumpyBloomError(
            f"{path} is damaged: {error.what}; no text can go on from it, begin it anew"
        ) from error
    _check_says(path, file.about.get("settings"), SETTINGS)
    prompt = file.about["prompt_tokens"]
    new = list(zip(file.ids, file.logprobs, strict=True))[prompt:]
    return PromptCache(
        path,
        file.about,
        file.ids[:prompt],
        new,
        file.guesses,
        file,
        _cached(file),
        True,
        ignore_damaged,
    )


def _opened(
    path: Path, model: Fingerprint, *, write: bool, ignore_damaged: bool
) -> PromptCacheFile:
    """A file that is whole, or damaged only beyond its prompt, and of this model."""
    file = PromptCacheFile.open(path, write=write, ignore_damaged=ignore_damaged)
    _check_says(path, file.about, ABOUT)
    prompt = file.about["prompt_tokens"]
    if len(file.ids) < prompt:
        raise DamagedError(path, f"of the {prompt} tokens of its prompt {len(file.ids)} are there")
    theirs = file.about["model"]
    if theirs["sha256"] != model["sha256"]:
        differs = [
            f"{name} is {theirs[name]!r}, here it is {value!r}"
            for name, value in model.items()
            if theirs[name] != value and name != "sha256"
        ]
        raise NumpyBloomError(
            f"{path} was written with another model: {'; '.join(differs) or 'weights differ'}; "
            "choose another file, or the model that it was written with"
        )
    return file


def _check_says(path: Path, said: object, names: Sequence[str]) -> None:
    """See that a file says what is to be known."""
    lacking = [name for name in names if not isinstance(said, dict) or name not in said]
    if lacking:
        raise NumpyBloomError(
            f"{path} does not say {listing(lacking)}: it was written with another version; choose "
            "another file"
        )


def _cached(file: PromptCacheFile) -> int:
    """Tokens whose keys and values are there and belong to the text."""
    ids, prompt = len(file.ids), file.about["prompt_tokens"]
    taken_over: int = file.about["taken_over"]
    return taken_over if ids == prompt else ids - 1


def fingerprint(manifest: Mapping[str, Any], config: BloomConfig) -> Fingerprint:
    """What tells a converted model apart from others, without a look at its weights.

    Args:
        manifest: names its files with their checksums.
        config: its sizes.
    """
    weights = {name: v for name, v in manifest["files"].items() if name.endswith(ARRAYS_SUFFIX)}
    sizes = asdict(config)
    del sizes["eos_token_ids"], sizes["tie_word_embeddings"]  # the files tell of a head
    content = json.dumps([weights, sizes], sort_keys=True).encode()
    told_of = {name: manifest.get(name) for name in ("source", "dtype", "head_dtype")}
    return {**told_of, "sha256": hashlib.sha256(content).hexdigest()}
