"""Which cache holds the keys and values of which beam."""

from dataclasses import dataclass, field

from numpy_bloom.generation.drafts import common_prefix
from numpy_bloom.running.runner import SequenceCache


@dataclass(eq=False)
class BeamCache:
    """A cache, and the text whose keys and values it holds; there may be more in it."""

    cache: SequenceCache
    text: list[int] = field(default_factory=list)

    def holds(self, text: list[int]) -> bool:
        return self.text[: len(text)] == text


def reorder_caches(caches: list[BeamCache], texts: list[list[int]]) -> list[BeamCache]:
    """Give each text a cache that holds it.

    A text keeps the cache that holds it. Where several stem from one, the others take caches whose
    texts nobody follows any more, and what those do not have in common with them is copied. What
    is needed is never written over, so after an interruption the same can be done again.

    Args:
        caches: at least as many as texts; for each text one of them holds it.
    """
    free = list(caches)
    result: list[BeamCache | None] = []
    for text in texts:
        own = next((one for one in free if one.holds(text)), None)
        if own is not None:
            free.remove(own)
        result.append(own)
    staying = [one for one in result if one is not None]
    for place, text in enumerate(texts):
        if result[place] is None:
            source = next(one for one in staying if one.holds(text))
            taken = max(free, key=lambda one: common_prefix(one.text, text))
            free.remove(taken)
            taken.cache.copy_prefix(source.cache, len(text), common_prefix(taken.text, text))
            taken.text = text
            result[place] = taken
    return [one for one in result if one is not None]
