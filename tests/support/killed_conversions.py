"""Conversions that are killed by SIGKILL and started again.

    python tests/support/killed_conversions.py FOLDER random 200 at random moments
    python tests/support/killed_conversions.py FOLDER steps 1    at each write, sync, rename, unlink
    python tests/support/killed_conversions.py FOLDER steps 3    at every third of them

FOLDER must hold a checkpoint in `source`. After each kill, whatever has its final name must be byte
for byte what an undisturbed conversion writes; and so must the folder be that comes out in the end.
--options, as JSON, go to `convert`.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # to find `support` when run by path

from conversion import convert, direct
from support.conversions import snapshot
from support.killed_runs import Steps


def child(folder: Path, options: dict[str, Any], last: int = 0) -> int:
    """Start a conversion in a process of its own, killed at its n-th step, if n is not 0."""
    process = os.fork()
    if process == 0:
        try:
            direct.BUFFER_BYTES = 4096  # so that a file needs several
            steps = Steps(last)
            for name in ("write", "fsync", "replace", "rename", "unlink", "rmdir"):
                steps.before(os, name)
            convert(folder / "source", folder / "model", **options)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return process


def ended(process: int) -> bool:
    """Wait for a conversion; whether it was not killed."""
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code == 0


class Folder:
    """A checkpoint, what must come of it, and a way back to the beginning."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.path = folder
        self.options = options
        self.copy = folder / "copy"
        if not self.copy.exists():
            shutil.copytree(folder / "source", self.copy)
        self.renew()
        assert ended(child(folder, options))
        self.expected = snapshot(folder / "model")
        self.renew()

    def renew(self) -> None:
        """As if nothing had been converted yet."""
        for path in self.path.iterdir():
            if path != self.copy and not (path.name == "source" and not self._deletes):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self._deletes:
            shutil.copytree(self.copy, self.path / "source")

    @property
    def _deletes(self) -> bool:
        return self.options.get("keep_source") is False

    def check(self) -> bool:
        """That whatever has its final name is right; whether the model has."""
        for path, content in snapshot(self.path).items():
            folder, _, name = path.rpartition("/")
            if folder == "model.partial" and not name.endswith(".new"):
                assert content == self.expected[name], path
        if (self.path / "model").exists():
            assert snapshot(self.path / "model") == self.expected
            return True
        return False


def kill_at_random(folder: Folder, runs: int) -> dict[str, int]:
    """Kill so many, each within the time that an undisturbed one takes."""
    begin = time.perf_counter()
    ended(child(folder.path, folder.options))
    longest = time.perf_counter() - begin
    folder.renew()
    kills = finished = 0
    while kills < runs:
        process = child(folder.path, folder.options)
        time.sleep(random.uniform(0, longest))
        os.kill(process, signal.SIGKILL)
        kills += not ended(process)
        if folder.check():
            finished += 1
            folder.renew()
    if not (folder.path / "model").exists():
        assert ended(child(folder.path, folder.options))
        assert folder.check()
    return {"kills": kills, "finished": finished}


def kill_at_steps(folder: Folder, stride: int) -> dict[str, int]:
    """Kill one at its first step, one so many later, and so on; a second run finishes each."""
    kills = 0
    while not ended(child(folder.path, folder.options, 1 + kills * stride)):
        kills += 1
        if not folder.check():
            assert ended(child(folder.path, folder.options))
            assert folder.check()
        folder.renew()
    return {"kills": kills}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("when", choices=["random", "steps"])
    parser.add_argument("number", type=int)
    parser.add_argument("--options", type=json.loads, default={})
    args = parser.parse_args()
    folder = Folder(args.folder, args.options)
    kill = kill_at_steps if args.when == "steps" else kill_at_random
    print(json.dumps(kill(folder, args.number)))


if __name__ == "__main__":
    sys.exit(main())
