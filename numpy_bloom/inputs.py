"""What goes into a model: token ids."""

import numpy as np
import numpy.typing as npt

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.model.forward import TokenIds


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
