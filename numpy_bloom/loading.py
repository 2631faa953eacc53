"""load(): from a folder to the object that users hold."""

from pathlib import Path
from typing import Any

from numpy_bloom.bloom import Bloom
from numpy_bloom.errors import NumpyBloomError, check_whole
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.running.model import Model
from numpy_bloom.running.runner import Runner
from numpy_bloom.sizes import parse_size
from numpy_bloom.weights.budget import default_memory, default_threads

DEMO = Path(__file__).parent / "demo"
"""The small model that ships with the package."""


def load(
    folder: str | Path | None = None,
    *,
    memory: str | int | None = None,
    threads: int | None = None,
    cluster: Any = None,
) -> Bloom:
    """Open a converted model. Use it in a `with` statement, or close it.

    Args:
        folder: what `python -m conversion` wrote. Default: the demo model.
        memory: for weights, key-value caches, buffers and activations together, such as `2GB`;
            weights that do not fit are read from disk in every pass. Default: what this process
            has available, less a margin.
        threads: how many compute. Default: the cores available to this process.
        cluster: spread the blocks over the workers of a Dask cluster: the address of its scheduler,
            such as `tcp://host:8786`; `local:3` for three processes here; or a
            `distributed.Client`. Workers find their blocks under the same path. Memory and threads
            are then those of each worker, at most; by default what Dask gives it. The logger
            `numpy_bloom` tells who holds what (INFO), and of workers that are lost (WARNING).

    Raises:
        NumpyBloomError: the folder is no complete converted model, or an option is out of range.
    """
    if threads is not None:
        check_whole("threads", threads, 1)
    limit = None if memory is None else parse_size(memory)

    def open_model(path: Path, config: BloomConfig) -> Runner:
        if cluster is not None:
            return _cluster_model(path, config, limit, threads, cluster)
        return Model.open(
            path,
            config,
            memory=default_memory() if limit is None else limit,
            threads=threads or default_threads(),
        )

    return Bloom(DEMO if folder is None else Path(folder), open_model)


def _cluster_model(
    path: Path, config: BloomConfig, memory: int | None, threads: int | None, cluster: Any
) -> Runner:
    """The model on the workers of a cluster."""
    try:
        from numpy_bloom.cluster.open import open_cluster  # noqa: PLC0415  (needs an extra)
    except ModuleNotFoundError as error:
        raise NumpyBloomError(
            f"a cluster needs {error.name}, which is not installed: pip install dask distributed"
        ) from error
    return open_cluster(path, config, memory=memory, threads=threads, cluster=cluster)
