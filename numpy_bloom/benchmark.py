"""Command: a model's speed and its limits here. `python -m numpy_bloom.benchmark --help`"""

import json
import sys
from dataclasses import asdict

from numpy_bloom.command import add_model_options, parser, rate, run_command
from numpy_bloom.errors import check_whole
from numpy_bloom.loading import load
from numpy_bloom.sizes import size_text
from numpy_bloom.speed import Measurements, measure


def main() -> None:
    """Parse, measure, print."""
    command = parser(
        "numpy_bloom.benchmark",
        "Measure this machine and a model on it: disk, memory, tokens per second, and limits.",
        "python -m numpy_bloom.benchmark --model bloom-560m --memory 500MB",
    )
    add_model_options(command)
    add = command.add_argument
    add("--prompt-tokens", type=int, default=128, metavar="N", help="default: %(default)s")
    add("--new-tokens", type=int, default=16, metavar="N", help="default: %(default)s")
    add("--json", action="store_true", help="one JSON object")
    args = command.parse_args()
    for name in ("prompt_tokens", "new_tokens"):
        check_whole(name, getattr(args, name), 1)
    with load(args.model, memory=args.memory, threads=args.threads) as bloom:
        measured = measure(bloom, args.prompt_tokens, args.new_tokens)
    print(json.dumps(asdict(measured)) if args.json else _table(measured))


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
