"""The cache of a sequence whose keys and values lie on the workers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.weights.dtypes import Floats

if TYPE_CHECKING:
    from numpy_bloom.cluster.model import ClusterModel


class RemoteCache:
    """What the client knows of a cache: which tokens are in it.

    It says how many they are, so nobody has to be told of tokens that are forgotten, or of a pass
    that was interrupted; and of which they are, so that all of it can be computed again.

    Args:
        model: whose it is.
        number: by which the workers know the cache.
        capacity: tokens that fit.
        pass_tokens: most that a pass of its run takes.
        token_shape: of what is kept of one token: (L, 2, N, D).

    Attributes:
        capacity: as given.
        length: tokens that are in; set back, it forgets those after it.
        intact: how many repairs of the chain it has come through; if there were more, it lacks
            keys and values.
    """

    def __init__(
        self,
        model: "ClusterModel",
        number: int,
        capacity: int,
        pass_tokens: int,
        token_shape: tuple[int, ...],
        intact: int,
    ) -> None:
        self.number = number
        self.capacity = capacity
        self.pass_tokens = pass_tokens
        self.token_shape = token_shape
        self.intact = intact
        self.length = 0
        self._model = model
        self._ids: list[int | None] = []

    def check_room(self, tokens: int) -> None:
        """Check that so many more fit.

        Raises:
            NumpyBloomError: they do not.
        """
        end = self.length + tokens
        if self.capacity and end > self.capacity:
            raise NumpyBloomError(
                f"the cache holds {self.capacity} tokens, {end} were given; make it larger"
            )

    def extend(self, ids: Sequence[int]) -> None:
        """A pass is complete: its tokens are of the past."""
        self._ids[self.length :] = ids
        self.length += len(ids)

    def ids(self) -> list[int]:
        """Of the tokens that are in.

        Raises:
            NumpyBloomError: keys and values came from a file, without their tokens.
        """
        ids = [token_id for token_id in self._ids[: self.length] if token_id is not None]
        if len(ids) < self.length:
            raise NumpyBloomError(
                "a worker was lost with keys and values that came from a file; the file is whole: "
                "go on with it again (--resume)"
            )
        return ids

    def token(self, place: int) -> Floats:
        """See `KVCache`."""
        return self._model.token(self, place)

    def put(self, place: int, keys_values: Floats) -> None:
        """See `KVCache`."""
        self._model.put(self, place, keys_values)
        self._ids[place:] = [None, *self._ids[place + 1 :]]

    def copy_prefix(self, other: "RemoteCache", tokens: int, known: int = 0) -> None:
        """See `KVCache`."""
        self._model.copy_prefix(self, other, tokens, known)
        self._ids[known:] = other._ids[known:tokens]
        self.length = tokens
