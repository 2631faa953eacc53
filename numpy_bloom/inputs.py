"""What a model needs besides its weights, and what goes into it: config, tokenizer, token ids."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.config import BloomConfig, eos_token_ids
from numpy_bloom.model.forward import TokenIds
from numpy_bloom.weights.folder import read_json


def read_config(folder: Path) -> BloomConfig:
    """The config, with the ends of text that generation_config.json may name."""
    values = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    config = BloomConfig.from_dict(values)
    if generation.is_file():
        name = f"{generation}: eos_token_id"
        eos = eos_token_ids(read_json(generation).get("eos_token_id"), name)
        config = replace(config, eos_token_ids=eos or config.eos_token_ids)
    return config


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a model's folder, if there is one."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise NumpyBloomError(f"cannot read {path}: {error}") from error


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
