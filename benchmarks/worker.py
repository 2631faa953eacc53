"""The other end of `serve.py`: start an engine's process, run prompts on it, look at its use.

Engines live side by side in processes that sleep while another one works, so that two of them can
be timed in turn within one run.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from engines import missing

SETTLE_SECONDS = 0.2


class EngineError(Exception):
    """An engine cannot run here, or its process ended; the text tells its last words."""


@dataclass(frozen=True)
class Run:
    """One prompt continued greedily.

    Attributes:
        pass_seconds: of the prompt's pass, then of one pass for each new token but the last.
        token_ids: the new tokens, one a pass.
        bytes_read: from storage during each pass, by the kernel's account; empty if it keeps none.
        peak_memory_bytes: largest resident memory of the process so far, mapped files included.
    """

    engine: str
    pass_seconds: list[float]
    token_ids: list[int]
    bytes_read: list[int]
    peak_memory_bytes: int

    @property
    def prefill_seconds(self) -> float:
        """Seconds of the prompt's pass."""
        return self.pass_seconds[0]

    @property
    def decode_seconds(self) -> float:
        """Seconds per token after the first."""
        decode = self.pass_seconds[1:]
        return sum(decode) / len(decode) if decode else float("nan")


class Worker:
    """A running engine. Use it in a `with` statement.

    Raises:
        EngineError: it cannot run here.
    """

    def __init__(
        self,
        engine: str,
        prepared: Path,
        threads: int,
        *,
        memory: str | None = None,
        group: Path | None = None,
    ) -> None:
        self.engine = engine
        if (reason := missing(engine, prepared)) is not None:
            raise EngineError(reason)
        command = [sys.executable, str(Path(__file__).with_name("serve.py")), engine, str(prepared)]
        command += ["--threads", str(threads)]
        command += ["--memory", memory] if memory else []
        command += ["--memory-group", str(group)] if group else []
        self._words = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed with the worker)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            bufsize=1,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        self._process.communicate()
        self._words.close()

    def run(
        self,
        prompt: Sequence[int],
        new_tokens: int,
        before_pass: Callable[[], None] = lambda: None,
    ) -> Run:
        """Continue a prompt by so many tokens.

        Args:
            before_pass: called before each pass, outside of its time.

        Raises:
            EngineError: the process ended.
        """
        seconds, ids, read = [], [], []
        for number in range(new_tokens):
            before_pass()
            before = self._bytes_read()
            first = {"op": "prompt", "token_ids": list(prompt), "new_tokens": new_tokens}
            answer = self._ask({"op": "next"} if number else first)
            seconds.append(answer["seconds"])
            ids.append(answer["token_id"])
            if before is not None:
                read.append((self._bytes_read() or 0) - before)
        return Run(self.engine, seconds, ids, read, self._peak_memory_bytes())

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # why it ended is told by what it left
            self._process.stdin.write(json.dumps(request) + "\n")
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self._process.wait()
        self._words.seek(0)
        last = (self._words.read().strip().splitlines() or ["no message"])[-1]
        why = "killed, out of memory?" if code == -9 else f"ended with {code}: {last}"
        raise EngineError(f"{self.engine} {why}")

    def _proc(self, name: str, key: str) -> int | None:
        """A number in a file of the process under /proc; None where there is none."""
        path = Path(f"/proc/{self._process.pid}/{name}")
        try:
            line = next(text for text in path.read_text().splitlines() if text.startswith(key))
        except (OSError, StopIteration):
            return None
        return int(line.split()[1])

    def _bytes_read(self) -> int | None:
        return self._proc("io", "read_bytes:")

    def settled_bytes_read(self) -> int:
        """Bytes read from storage so far, once what the engine reads ahead has come to rest."""
        before, count = -1, self._bytes_read() or 0
        while count != before:
            time.sleep(SETTLE_SECONDS)
            before, count = count, self._bytes_read() or 0
        return count

    def _peak_memory_bytes(self) -> int:
        return (self._proc("status", "VmHWM:") or 0) * 1024
