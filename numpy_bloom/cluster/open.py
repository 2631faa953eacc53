"""From `cluster=` to a model on a cluster."""

import asyncio
import logging
import multiprocessing
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import dask
from distributed import Client, LocalCluster, Security
from distributed.comm.core import connect
from distributed.utils import silence_logging_cmgr
from distributed.versions import VersionMismatchWarning

from numpy_bloom.cluster.chain import Chain
from numpy_bloom.cluster.model import ClusterModel
from numpy_bloom.cluster.survey import BESIDE
from numpy_bloom.errors import NumpyBloomError, OptionError
from numpy_bloom.model.config import BloomConfig
from numpy_bloom.weights.budget import default_memory, default_threads
from numpy_bloom.weights.manifest import read_manifest

logger = logging.getLogger(__name__)

LOCAL = re.compile(r"local:([1-9]\d*)")
ADDRESS = re.compile(r"(tcp|tls)://.+:\d+")

CONNECT_SECONDS = 20

LOCAL_SETTINGS = {
    # A worker that hangs is given up after so long (Dask: 5 minutes).
    "distributed.scheduler.worker-ttl": "5s",
    # Looking at what runs every few milliseconds takes time from it.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    # Ctrl-C at a terminal goes to all processes; the client ends the workers.
    "distributed.worker.preload": ["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"],
    # The weights are no results that could be written to disk meanwhile.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
}

# Dask lets go of a worker that it lost, if by then the new one in its place is lost as well.
LOCAL_SETTINGS_WHEN_LOST = {"distributed.deploy.lost-worker-timeout": "1 day"}


def open_cluster(
    folder: Path,
    config: BloomConfig,
    *,
    memory: int | None,
    threads: int | None,
    cluster: Any,
) -> ClusterModel:
    """Spread a model over a cluster. The log has the plan before it is carried out.

    Args:
        folder: of the converted model, under the same path on all workers.
        config: its sizes.
        memory, threads: most that each worker may use. Default: what Dask gives it.
        cluster: the address of a scheduler, `local:N`, or a client.

    Raises:
        NumpyBloomError: there is no cluster, or its workers do not have the model.
    """
    with ExitStack() as ours:
        client = cluster if isinstance(cluster, Client) else _client(cluster, ours)
        if client.asynchronous:
            raise NumpyBloomError("cluster is an asynchronous client; give one that is not")
        chain = Chain(
            client,
            folder.absolute(),
            config,
            read_manifest(folder),
            memory=memory,
            threads=threads,
        )
        chain.begin()
        return ClusterModel(config, chain, _closer(chain, ours.pop_all()))


def _closer(chain: Chain, ours: ExitStack) -> Callable[[], None]:
    def close() -> None:
        chain.end()
        ours.close()

    return close


def _client(cluster: Any, ours: ExitStack) -> Client:
    """A client of a cluster that is named. It is closed with what is ours."""
    local = LOCAL.fullmatch(str(cluster))
    if local:
        return ours.enter_context(
            Client(_local(int(local[1]), ours), set_as_default=False, direct_to_workers=True)
        )
    if not ADDRESS.fullmatch(str(cluster)):
        raise OptionError(
            f"cluster is {cluster!r}; expected the address of a scheduler, such as "
            "tcp://host:8786, or local:N for N processes"
        )
    # A Client that cannot even begin to connect would hang when it is collected.
    if str(cluster).startswith("tls") and not Security().get_connection_args("client").get(
        "ssl_context"
    ):
        raise NumpyBloomError(f"{cluster} needs certificates, by Dask's configuration")
    ours.enter_context(silence_logging_cmgr(logging.CRITICAL))  # what matters is told by us
    try:
        # In a thread, since a loop may run in this one.
        with ThreadPoolExecutor(1) as apart:
            apart.submit(asyncio.run, _greet(cluster)).result()
        with _versions_in_one_line():
            client = Client(cluster, timeout=CONNECT_SECONDS, set_as_default=False)
        return ours.enter_context(client)
    except (OSError, ValueError, TypeError, asyncio.TimeoutError) as error:
        told = str(error) or f"{CONNECT_SECONDS} s of silence"
        raise NumpyBloomError(
            f"no scheduler answers at {cluster}: {told}; start one: dask scheduler"
        ) from error


@contextmanager
def _versions_in_one_line() -> Iterator[None]:
    """Log which versions differ. Dask warns of it with a table of many lines."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VersionMismatchWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, VersionMismatchWarning):
            rows = [line for line in str(warning.message).splitlines() if line.startswith("|")]
            told = "; ".join(" ".join(row.replace("|", " ").split()) for row in rows)
            logger.warning("versions differ: %s", told)
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


async def _greet(address: str) -> None:
    """See that somebody answers: a Client would wait for ever for one who only takes calls."""
    options = Security().get_connection_args("client")
    comm = await asyncio.wait_for(connect(address, **options), CONNECT_SECONDS)
    await comm.close()


def _local(workers: int, ours: ExitStack) -> LocalCluster:
    """So many processes on this machine, with what is free of it."""
    # Each begins by importing the script. One that starts them as well ends here, so that there is
    # one error, and not one of each.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)
    memory = default_memory() // workers
    ours.enter_context(dask.config.set(LOCAL_SETTINGS_WHEN_LOST))
    try:
        with dask.config.set(LOCAL_SETTINGS):  # which the processes take over
            cluster = _not_cut_short(
                partial(
                    LocalCluster,
                    n_workers=workers,
                    threads_per_worker=max(1, default_threads() // workers),
                    memory_limit=memory + BESIDE,
                    dashboard_address=":0",  # any port that is free
                    silence_logs=logging.CRITICAL,
                    # Else processes that are started again would have what the program has by then.
                    config=deepcopy(dask.config.config),
                )
            )
    except RuntimeError as error:
        raise NumpyBloomError(
            f"the processes of local:{workers} do not start: {error} A script must load the model "
            'below `if __name__ == "__main__":`, since each of them imports it'
        ) from None
    return ours.enter_context(cluster)


def _not_cut_short(start: Callable[[], LocalCluster]) -> LocalCluster:
    """Start a cluster; after Ctrl-C end it when it has started, for one that has not cannot be."""
    with ThreadPoolExecutor(1) as apart:
        starting = apart.submit(start)
        try:
            return starting.result()
        except KeyboardInterrupt:
            with suppress(Exception):  # Ctrl-C may have ended its processes
                starting.result().close()
            raise
