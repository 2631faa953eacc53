"""What lies in a converted folder, for those who write it out again or read it raw."""

from pathlib import Path

from numpy_bloom.model.config import BloomConfig, read_config
from numpy_bloom.weights.folder import ArrayFile, model_files
from numpy_bloom.weights.safetensors_file import StoredArray, read_header

Contents = list[tuple[ArrayFile, dict[str, StoredArray]]]
"""The files of a model in the order of a pass, each with its arrays by name."""


def read_converted(folder: Path) -> tuple[BloomConfig, Contents]:
    """The config and the contents of a converted folder whose head is its word embeddings."""
    config = read_config(folder)
    files = model_files(config.num_hidden_layers, config.hidden_size, config.vocab_size)
    return config, [(file, read_header(folder / file.name)) for file in files]
