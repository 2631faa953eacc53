"""Which cache holds the keys and values of which beam."""

from dataclasses import dataclass, field

from numpy_bloom.generation.drafts import common_prefix
from numpy_bloom.model.cache import SequenceCache


@dataclass(eq=False)
class Seat:
    """A cache, and the text whose keys and values it holds; there may be more in it."""

    cache: SequenceCache
    text: list[int] = field(default_factory=list)

    def holds(self, text: list[int]) -> bool:
        return self.text[: len(text)] == text


def seated(seats: list[Seat], texts: list[list[int]]) -> list[Seat]:
    """Give each text a seat that holds it.

    A text that a seat holds stays there. Where several stem from one, the others take seats whose
    texts nobody follows any more, and what those do not have in common with them is copied. What
    is needed is never written over, so after an interruption the same can be done again.

    Args:
        seats: at least as many as texts; for each text one of them holds it.
    """
    free = list(seats)
    result: list[Seat | None] = []
    for text in texts:
        seat = next((seat for seat in free if seat.holds(text)), None)
        if seat is not None:
            free.remove(seat)
        result.append(seat)
    staying = [seat for seat in result if seat is not None]
    for place, text in enumerate(texts):
        if result[place] is None:
            source = next(seat for seat in staying if seat.holds(text))
            seat = max(free, key=lambda seat: common_prefix(seat.text, text))
            free.remove(seat)
            seat.cache.copy_prefix(source.cache, len(text), common_prefix(seat.text, text))
            seat.text = text
            result[place] = seat
    return [seat for seat in result if seat is not None]
