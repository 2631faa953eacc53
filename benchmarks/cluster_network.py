"""The time per token between three hosts on a slow network, beside the model on paper. As root.

    python benchmarks/cluster_network.py bloom-560m --delay-ms 1 --gbit 1

Three network namespaces stand for the hosts. Each has a worker of one thread; the first also has
the scheduler and the client. What leaves a host goes through a process that holds it to a rate and
a delay (tun devices, since not every kernel has netem). The model on paper (docs/cluster.md) takes
the rates of weights and what Dask takes for a task from the same cluster, before the network is
made slow, and adds delay and bandwidth by arithmetic. Workers measure their rates one by one,
for here they share one machine.
"""

import argparse
import fcntl
import heapq
import itertools
import os
import select
import signal
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from distributed import Client
from report import markdown

import numpy_bloom
from numpy_bloom.cluster import workers as workers_module
from numpy_bloom.cluster.plan import expected_seconds

HOSTS = ("nb1", "nb2", "nb3")
NETWORK = "10.77.0."
PORT = 8786
MTU = 60_000
"""Large packets, so that a process can carry them."""

PROMPT_TOKENS, NEW_TOKENS = 16, 24
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
"""Of linux/if_tun.h."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", metavar="DIR")
    add("--delay-ms", type=float, default=1.0, metavar="F", help="one way (default: %(default)s)")
    add("--gbit", type=float, default=1.0, metavar="F", help="default: %(default)s")
    add("--relay", type=int, help=argparse.SUPPRESS)  # of the client: who makes the network slow
    args = parser.parse_args()
    if args.relay:
        measure(args)
        return
    with hosts() as tuns:
        relay = get_context("fork").Process(
            target=carry, args=(tuns, args.delay_ms / 1e3, args.gbit * 1e9 / 8), daemon=True
        )
        relay.start()
        with cluster():
            run(HOSTS[0], [sys.executable, *sys.argv, "--relay", relay.pid])
        relay.kill()


@contextmanager
def hosts() -> Iterator[list[int]]:
    """Network namespaces, each with a device of which this process has the other end."""
    with ExitStack() as made:
        tuns = []
        for number, host in enumerate(HOSTS, start=1):
            ip("netns", "add", host)
            made.callback(ip, "netns", "del", host)
            tuns.append(os.open("/dev/net/tun", os.O_RDWR))
            made.callback(os.close, tuns[-1])
            name = f"{host}-tun"
            request = struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI)
            fcntl.ioctl(tuns[-1], TUNSETIFF, request)
            ip("link", "set", name, "netns", host)
            run(host, ["ip", "link", "set", "lo", "up"])
            run(host, ["ip", "addr", "add", f"{NETWORK}{number}/24", "dev", name])
            run(host, ["ip", "link", "set", name, "mtu", str(MTU), "up"])
        yield tuns


def carry(tuns: list[int], delay: float, rate: float) -> None:
    """Hand packets from host to host: at once, and held back from SIGUSR1 on."""
    slow: list[bool] = []
    signal.signal(signal.SIGUSR1, lambda *_: slow.append(True))
    free = dict.fromkeys(tuns, 0.0)  # when what left a host before has left it
    flying: list[tuple[float, int, int, bytes]] = []
    order = itertools.count()
    while True:
        wait = max(0.0, flying[0][0] - time.monotonic()) if flying else None
        readable, _, _ = select.select(tuns, [], [], wait)
        for tun in readable:
            packet = os.read(tun, MTU + 100)
            number = packet[19] if packet[0] >> 4 == 4 else 0  # last byte of an IPv4 target
            if not 1 <= number <= len(tuns):
                continue
            free[tun] = max(free[tun], time.monotonic()) + (len(packet) / rate if slow else 0)
            due = free[tun] + (delay if slow else 0)
            heapq.heappush(flying, (due, next(order), tuns[number - 1], packet))
        while flying and flying[0][0] <= time.monotonic():
            _, _, tun, packet = heapq.heappop(flying)
            os.write(tun, packet)


@contextmanager
def cluster() -> Iterator[None]:
    """A scheduler on the first host and a worker of one thread on each."""
    names = ("MEMORY__TARGET", "MEMORY__SPILL", "MEMORY__PAUSE", "PROFILE__ENABLED")
    settings = {f"DASK_DISTRIBUTED__WORKER__{name}": "False" for name in names}
    dask = str(Path(sys.executable).with_name("dask"))
    scheduler = f"tcp://{NETWORK}1:{PORT}"
    commands = [[dask, "scheduler", "--host", f"{NETWORK}1", "--port", str(PORT)]]
    options = ["--nthreads", "1", "--memory-limit", "5GB", "--no-dashboard"]
    commands += [
        [dask, "worker", scheduler, "--host", f"{NETWORK}{number}", *options]
        for number in range(1, len(HOSTS) + 1)
    ]
    with ExitStack() as started:
        for host, command in zip([HOSTS[0], *HOSTS], commands, strict=True):
            process = subprocess.Popen(
                ["ip", "netns", "exec", host, *command],
                stderr=subprocess.DEVNULL,
                env=os.environ | settings,
            )
            started.callback(process.wait)
            started.callback(process.terminate)
        yield


def measure(args: argparse.Namespace) -> None:
    """In the first host: rates, then the slow network, then tokens."""
    workers_module._one_of_each_machine = lambda addresses: [[one] for one in sorted(addresses)]
    with Client(f"tcp://{NETWORK}1:{PORT}", timeout=30) as client:
        client.wait_for_workers(len(HOSTS), timeout=60)
        with numpy_bloom.load(args.model, threads=1, cluster=client) as model:
            chain = model.model._chain
            fast = statistics.median(pass_seconds(model) for _ in range(3))
            parts, config = chain.parts, model.config
            empty = statistics.median(chain._empty_pass() for _ in range(5))
            os.kill(args.relay, signal.SIGUSR1)
            slow = statistics.median(pass_seconds(model) for _ in range(3))
    paper = paper_seconds(args, parts, config, empty)
    rows = [
        ("", "ms a token"),
        ("without delay, measured", f"{fast * 1e3:.1f}"),
        ("without delay, on paper", f"{expected_seconds(parts, empty) * 1e3:.1f}"),
        ("with delay, measured", f"{slow * 1e3:.1f}"),
        ("with delay, on paper", f"{paper * 1e3:.1f}"),
        ("measured over paper", f"{slow / paper:.3f}"),
    ]
    print(markdown(rows))


def paper_seconds(args: argparse.Namespace, parts: Any, config: Any, empty: float) -> float:
    """Weights by rate, an empty pass, and for each range the network's delays and payload.

    A task on another host is started and says that it is done, one way each; what comes from
    another host is asked for and sent. Scheduler and client are on the first host.
    """
    here = f"{NETWORK}1"
    hosts = [urlsplit(part.worker.address).hostname for part in parts]
    ways = sum(2 for host in hosts if host != here)
    crossings = [a != b for a, b in pairwise([*hosts, here])]
    ways += 2 * sum(crossings)
    sizes = [config.hidden_size] * (len(parts) - 1) + [config.vocab_size]
    payload = sum(4 * size for size, crosses in zip(sizes, crossings, strict=True) if crosses)
    delays = ways * args.delay_ms / 1e3
    return expected_seconds(parts, empty) + delays + payload / (args.gbit * 1e9 / 8)


def pass_seconds(model: numpy_bloom.Bloom) -> float:
    """Median of the passes after the prompt."""
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, PROMPT_TOKENS)
    generation = model.generate(ids, max_new_tokens=NEW_TOKENS)
    for _ in generation:
        pass
    return statistics.median(one.seconds for one in generation._continuation.passes[1:])


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def run(host: str, command: list[Any]) -> None:
    subprocess.run(["ip", "netns", "exec", host, *map(str, command)], check=True)


if __name__ == "__main__":
    main()
