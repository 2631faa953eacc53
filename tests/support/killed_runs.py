"""A process whose children are killed while they keep a text; see test_prompt_cache_kills.

    python tests/support/killed_runs.py MODEL FILE OPTIONS

Reads two numbers from each line of stdin and lets a child run. It begins the text of OPTIONS (JSON)
or, if the second number is 1, goes on with it; and is killed by SIGKILL at its n-th step, or never
if n is 0. A step is a write (half of it is done then), another change of a file, a pass, or a token
that is handed out. Answers with a line of JSON.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # to find `support` when run by path

import numpy_bloom
from numpy_bloom.bloom import Bloom
from numpy_bloom.running.model import Model
from support.threads import thread_names


class Steps:
    """Counts, and kills at one of them."""

    def __init__(self, last: int) -> None:
        self.count = 0
        self._last = last

    def step(self, half: Callable[[], Any] | None = None) -> None:
        self.count += 1
        if self.count == self._last:
            if half is not None:
                half()
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, holder: Any, name: str) -> None:
        """Each call of a function is a step."""
        real = getattr(holder, name)

        def function(*arguments: Any, **options: Any) -> Any:
            self.step()
            return real(*arguments, **options)

        setattr(holder, name, function)

    def before_writes(self) -> None:
        real = os.pwrite

        def pwrite(handle: int, content: Any, offset: int) -> int:
            # Nothing tears a record: they are aligned, and neither a page nor a sector ends in one.
            half = memoryview(content).cast("B")[: memoryview(content).nbytes // 64 * 32]
            self.step(lambda: real(handle, half, offset))
            return real(handle, content, offset)

        os.pwrite = pwrite


def run(
    model: Bloom, file: Path, options: dict[str, Any], last: int, resume: bool, told: int
) -> None:
    """What a child does. It tells each token as soon as it has it."""
    steps = Steps(last)
    steps.before_writes()
    for name in ("fsync", "ftruncate", "replace", "rename"):
        steps.before(os, name)
    steps.before(Model, "run")
    begin = model.generate
    generation = model.resume(file) if resume else begin(prompt_cache=file, **options)
    os.write(told, f"{len(generation.token_ids)}\n".encode())
    for token in generation:
        os.write(told, f"{json.dumps([token.id, token.logprob])}\n".encode())
        steps.step()
    os.write(told, f"{json.dumps([generation.finish_reason, steps.count])}\n".encode())


def main() -> None:
    folder, file, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    model = numpy_bloom.load(folder, threads=1)
    # With all weights in memory, and without threads, the children can go on with the model.
    list(model.generate(options["prompt"], max_new_tokens=1))
    assert thread_names() == ["MainThread"]
    for line in sys.stdin:
        last, resume = map(int, line.split())
        source, told = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(source)
                run(model, file, options, last, bool(resume), told)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os.close(told)
        with os.fdopen(source) as pipe:
            lines = pipe.read().splitlines()
        _, status = os.waitpid(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), *map(json.loads, lines)]), flush=True)


if __name__ == "__main__":
    main()
