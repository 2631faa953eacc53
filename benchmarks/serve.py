"""One engine in a process of its own: requests on stdin, answers on stdout, one JSON object a line.

    {"op": "prompt", "token_ids": [1, 2, 3], "new_tokens": 8}   a new sequence, and its first pass
    {"op": "next"}                                              one more token, the one chosen last
    → {"seconds": 0.43, "token_id": 17}

`seconds` is a pass with its logits in float32 and the choice of the likeliest token. Started by
`worker.py`; between requests it sleeps.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from engines import Engine, open_engine


def main() -> None:
    """Join the memory group, open the engine, answer until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("engine")
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--memory")
    parser.add_argument("--memory-group", type=Path)
    args = parser.parse_args()
    if args.memory_group:  # before any large allocation
        (args.memory_group / "cgroup.procs").write_text(str(os.getpid()))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    engine = open_engine(args.engine, args.prepared, args.threads, args.memory)
    _answer(answers, {"ready": True})
    token_id = 0
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "prompt":
            ids = request["token_ids"]
            engine.reset(len(ids) + request["new_tokens"])
        else:
            ids = [token_id]
        seconds, token_id = _timed_pass(engine, ids)
        _answer(answers, {"seconds": seconds, "token_id": token_id})


def _timed_pass(engine: Engine, ids: list[int]) -> tuple[float, int]:
    begin = time.perf_counter()
    token_id = int(engine.forward(ids).argmax())
    return time.perf_counter() - begin, token_id


def _answer(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")


if __name__ == "__main__":
    main()
