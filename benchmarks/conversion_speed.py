"""Conversion beside `cp` of the same files, each with all of it on disk in the end.

    python benchmarks/make_checkpoint.py 560m hf-560m
    python benchmarks/conversion_speed.py hf-560m --pairs 3

Prints one line a pair: seconds of both, the ratio of their speeds, and the conversion's largest
memory. The source is read once before, so that both find it in the page cache; pairs alternate in
order. With --bin a checkpoint in PyTorch's format is made of it first, which needs torch.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

CONVERT = """
import sys
from conversion import convert
from numpy_bloom.weights.budget import peak_memory_bytes
convert(*sys.argv[1:])
print(peak_memory_bytes())
"""


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--bin", action="store_true")
    args = parser.parse_args()
    source = write_bin(args.source) if args.bin else args.source
    target = source.with_name(source.name + ".measured")
    ratios = []
    for pair in range(args.pairs):
        order = [copied, converted] if pair % 2 == 0 else [converted, copied]
        seconds = {}
        for act in order:
            read_all(source)
            os.sync()
            time.sleep(3)  # the disk is busy with what was removed
            seconds[act] = act(source, target)
            shutil.rmtree(target)
        (copy, _), (conversion, peak) = seconds[copied], seconds[converted]
        ratios.append(copy / conversion)
        print(
            f"cp + fsync {copy:.2f} s, conversion {conversion:.2f} s: {ratios[-1]:.2f} of the "
            f"speed, {peak / 1e6:.0f} MB",
            flush=True,
        )
    print(f"median {statistics.median(ratios):.2f}")


def copied(source: Path, target: Path) -> tuple[float, int]:
    """Seconds of `cp` and then an fsync of each file and of the folder."""
    begin = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    for path in [*target.iterdir(), target]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return time.perf_counter() - begin, 0


def converted(source: Path, target: Path) -> tuple[float, int]:
    """Seconds of a conversion, the interpreter's start included, and its largest memory, bytes."""
    begin = time.perf_counter()
    command = [sys.executable, "-c", CONVERT, str(source), str(target)]
    compiled = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # as an installed package is
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=compiled)
    return time.perf_counter() - begin, int(done.stdout)


def read_all(folder: Path) -> None:
    """Have a folder's files in the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def write_bin(source: Path) -> Path:
    """The same checkpoint as `.bin` shards."""
    import json  # noqa: PLC0415

    import torch  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    folder = source.with_name(source.name + "-bin")
    if folder.exists():
        return folder
    folder.mkdir()
    for shard in sorted(source.glob("*.safetensors")):
        torch.save(load_file(shard), folder / f"{shard.stem}.bin")
    index = json.loads((source / "model.safetensors.index.json").read_text())
    index["weight_map"] = {
        name: file.replace(".safetensors", ".bin") for name, file in index["weight_map"].items()
    }
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(source / name, folder)
    return folder


if __name__ == "__main__":
    main()
