"""Command: a model's speed and its limits here. `python -m numpy_bloom.benchmark --help`"""

import json
import math
import statistics
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np

from numpy_bloom.bloom import Bloom
from numpy_bloom.command import parser, path_argument, rate, run_command
from numpy_bloom.errors import check_whole
from numpy_bloom.loading import load
from numpy_bloom.model.memory import Needs
from numpy_bloom.weights.budget import size_text
from numpy_bloom.weights.rates import arithmetic_rate, disk_rate, memory_rate


@dataclass(frozen=True)
class Measurements:
    """Rates in bytes, operations or tokens per second; each limit is what the rates allow.

    Attributes:
        disk_rate, memory_rate, arithmetic_rate: what the machine can do.
        pass_bytes_memory, pass_bytes_disk: weights that each pass reads from either.
        prefill_tokens: tokens of the prompt.
        prefill_rate, prefill_limit: tokens of the prompt per second; the limit is reading each
            weight once or two operations for each weight and token (of the head: for one token),
            whichever takes longer.
        decode_rate, decode_limit: new tokens per second; the limit is reading each weight.
    """

    threads: int
    disk_rate: float
    memory_rate: float
    arithmetic_rate: float
    pass_bytes_memory: int
    pass_bytes_disk: int
    prefill_tokens: int
    prefill_rate: float
    prefill_limit: float
    decode_rate: float
    decode_limit: float


def main() -> None:
    """Parse, measure, print."""
    command = parser(
        "numpy_bloom.benchmark",
        "Measure this machine and a model on it: disk, memory, tokens per second, and limits.",
        "python -m numpy_bloom.benchmark --model bloom-560m --memory 500MB",
    )
    add = command.add_argument
    add(
        "--model",
        type=path_argument,
        metavar="DIR",
        help="a converted model (default: the demo model)",
    )
    add(
        "--memory",
        metavar="SIZE",
        help="for weights, cache, buffers, such as 2GB (default: what is free)",
    )
    add("--threads", type=int, metavar="N", help="default: the cores available")
    add("--prompt-tokens", type=int, default=128, metavar="N", help="default: %(default)s")
    add("--new-tokens", type=int, default=16, metavar="N", help="default: %(default)s")
    add("--json", action="store_true", help="one JSON object")
    args = command.parse_args()
    for name in ("prompt_tokens", "new_tokens"):
        check_whole(name, getattr(args, name), 1)
    with load(args.model, memory=args.memory, threads=args.threads) as bloom:
        measured = measure(bloom, args.prompt_tokens, args.new_tokens)
    print(json.dumps(asdict(measured)) if args.json else _table(measured))


def measure(bloom: Bloom, prompt_tokens: int, new_tokens: int) -> Measurements:
    """Run one prompt of arbitrary tokens and so many passes of one token, greedily fed."""
    model = bloom.whole_model
    store, stream = model.store, model.stream
    disk = disk_rate(stream.chunks)
    with store.computing():
        memory = memory_rate(store.team, model.memory)
        arithmetic = arithmetic_rate(store.team)

    capacity = prompt_tokens + new_tokens
    caches = model.prepare(Needs([capacity], pass_tokens=prompt_tokens, logit_rows=1))
    ids = np.arange(prompt_tokens) % bloom.config.vocab_size
    seconds = []
    for _ in range(1 + new_tokens):
        begin = time.perf_counter()
        logits = model.run([ids], caches)
        seconds.append(time.perf_counter() - begin)
        ids = logits.argmax(axis=-1)
    prefill, decode = seconds[0], statistics.median(seconds[1:])

    from_disk = stream.nbytes - stream.bytes_pinned
    reading = max(from_disk / disk, stream.bytes_pinned / memory)
    config = bloom.config
    blocks = 12 * config.hidden_size**2 * config.num_hidden_layers  # weights of all matrices
    head = math.prod(model.parameters.lm_head.shape)  # which only the last token meets
    computing = 2 * (blocks * prompt_tokens + head) / arithmetic
    return Measurements(
        threads=store.team.threads,
        disk_rate=disk,
        memory_rate=memory,
        arithmetic_rate=arithmetic,
        pass_bytes_memory=stream.bytes_pinned,
        pass_bytes_disk=from_disk,
        prefill_tokens=prompt_tokens,
        prefill_rate=prompt_tokens / prefill,
        prefill_limit=prompt_tokens / max(reading, computing),
        decode_rate=1 / decode,
        decode_limit=1 / reading,
    )


def _table(m: Measurements) -> str:
    rows = [
        ("threads", f"{m.threads}", ""),
        ("disk", f"{size_text(m.disk_rate)}/s", ""),
        ("memory", f"{size_text(m.memory_rate)}/s", ""),
        ("arithmetic", f"{m.arithmetic_rate / 1e9:.0f} GFLOP/s", ""),
        ("a pass reads", size_text(m.pass_bytes_memory), "from memory"),
        ("", size_text(m.pass_bytes_disk), "from disk"),
        _speed(f"prefill of {m.prefill_tokens}", m.prefill_rate, m.prefill_limit),
        _speed("decode", m.decode_rate, m.decode_limit),
    ]
    return "\n".join(f"{name:<16}{value:>16}  {remark}".rstrip() for name, value, remark in rows)


def _speed(name: str, reached: float, limit: float) -> tuple[str, str, str]:
    share = f"{reached / limit:.2f} of the limit, {rate(limit)} tokens/s"
    return name, f"{rate(reached)} tokens/s", share


if __name__ == "__main__":
    sys.exit(run_command(main, "benchmark"))
