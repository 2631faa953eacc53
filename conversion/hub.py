"""Where a checkpoint is: a local folder, or a name on the Hugging Face hub."""

import re
from fnmatch import fnmatch
from pathlib import Path

from numpy_bloom.errors import NumpyBloomError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
DESCRIPTIONS = ["config.json", "generation_config.json", "tokenizer*.json", "special_tokens*.json"]
WEIGHTS = ["model*.safetensors*", "pytorch_model*.bin*"]
"""The first of these that the hub has is downloaded."""


def local_folder(source: str) -> Path:
    """The folder of a checkpoint; one on the hub is downloaded first, into the hub's own cache.

    Raises:
        NumpyBloomError: there is no such folder, and no such model on the hub or no way to it.
    """
    if Path(source).is_dir():
        return Path(source)
    if not HUB_NAME.fullmatch(source):
        raise NumpyBloomError(
            f"{source} is neither a folder nor a name on the hub such as bigscience/bloom-560m"
        )
    # Imported here, since it takes longer than all the rest and local folders do not need it.
    from huggingface_hub import list_repo_files, snapshot_download  # noqa: PLC0415

    try:
        files = list_repo_files(source)
        weights = next((p for p in WEIGHTS if any(fnmatch(file, p) for file in files)), WEIGHTS[-1])
        return Path(snapshot_download(source, allow_patterns=[*DESCRIPTIONS, weights]))
    except Exception as error:  # of the hub's library, of its HTTP client, of the system
        reason = str(error).split("\n", maxsplit=1)[0] or type(error).__name__
        raise NumpyBloomError(
            f"there is no folder {source}, and it cannot be had from the hub: {reason}"
        ) from error
