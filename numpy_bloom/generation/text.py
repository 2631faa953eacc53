"""From token ids to text that can be shown at once: whole characters, and no stop strings."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from numpy_bloom.errors import NumpyBloomError, OptionError


class TextStream:
    """Text of the tokens so far. What is given out is never taken back.

    A character may be split across tokens, and a stop string may have begun: such text is held
    until it is certain.

    Args:
        tokenizer: None gives no text.
        stop: strings that end the text; they are no part of it.

    Attributes:
        stopped: whether a stop string was met.

    Raises:
        OptionError: a stop string is empty.
        NumpyBloomError: there is no tokenizer to find a stop string with.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str] = ()) -> None:
        stop = stop_texts(stop)
        if "" in stop:
            raise OptionError("a stop text is empty; expected at least one character")
        if stop and tokenizer is None:
            raise NumpyBloomError("a stop text needs a tokenizer; the model's folder has none")
        self._tokenizer = tokenizer
        self._stop = stop
        self.restart([])

    def restart(self, token_ids: Sequence[int]) -> None:
        """Be where one is after these tokens, also if a step was cut short."""
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._decoded = ""  # whole characters so far
        self._given = 0  # how many of them were given out
        self.stopped = False
        for token_id in token_ids:
            self.step(token_id)

    def step(self, token_id: int) -> str:
        """Take one more token; give out what text is now certain, possibly none.

        Raises:
            NumpyBloomError: the tokenizer fails, since its decoder fits no byte-level vocabulary.
        """
        if self._tokenizer is None:
            return ""
        self._ids.append(token_id)
        try:
            self._decoded += self._stream.step(self._tokenizer, token_id) or ""
        except Exception as error:  # the library raises plain Exception
            raise NumpyBloomError(
                f"the tokenizer cannot turn token {token_id} into text: {error}"
            ) from error
        return self._give(self._certain())

    def finish(self) -> str:
        """No more tokens: give out what was held back, an unfinished character as U+FFFD."""
        if self._tokenizer is None or self.stopped:
            return ""
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if whole.startswith(self._decoded):
            self._decoded = whole
        # A stop string may have ended in a token that ends with an unfinished character.
        return self._give(end if (end := self._found()) is not None else len(self._decoded))

    def _give(self, end: int) -> str:
        text = self._decoded[self._given : end]
        self._given = end
        return text

    def _certain(self) -> int:
        """How much of the text cannot become part of a stop string."""
        if (end := self._found()) is not None:
            return end
        begun = [
            length
            for text in self._stop
            for length in range(1, len(text))
            if self._decoded.endswith(text[:length])
        ]
        return max(self._given, len(self._decoded) - max(begun, default=0))

    def _found(self) -> int | None:
        """Where the first stop string begins, if there is one.

        The first to end, that is: so it does not matter how the text was split into tokens.
        """
        starts = [(text, self._decoded.find(text, self._given)) for text in self._stop]
        ends = [(at + len(text), at) for text, at in starts if at >= 0]
        self.stopped = bool(ends)
        return min(ends)[1] if ends else None


def stop_texts(stop: Sequence[str]) -> list[str]:
    """Texts to stop before, also if only one was given."""
    return [stop] if isinstance(stop, str) else list(stop)
