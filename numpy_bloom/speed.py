"""How fast a model is on this machine, and what limits it."""

import math
import statistics
import time
from dataclasses import dataclass

import numpy as np

from numpy_bloom.running.memory import Needs
from numpy_bloom.text_model import TextModel
from numpy_bloom.weights.rates import arithmetic_rate, disk_rate, memory_rate
from numpy_bloom.weights.team import one_blas_thread


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


def measure(bloom: TextModel, prompt_tokens: int, new_tokens: int) -> Measurements:
    """Run one prompt of arbitrary tokens and so many passes of one token, greedily fed."""
    model = bloom.whole_model
    store, stream = model.store, model.stream
    disk = disk_rate(stream.chunks)
    with one_blas_thread():
        memory = memory_rate(store.team, model.memory)
        arithmetic = arithmetic_rate(store.team)

    capacity = prompt_tokens + new_tokens
    caches = model.prepare(Needs([capacity], pass_tokens=prompt_tokens, logit_rows=1))
    store.wait_for_processes()
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
