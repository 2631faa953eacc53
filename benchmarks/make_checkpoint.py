"""Make a BLOOM checkpoint of a published shape with random bfloat16 weights, without PyTorch.

    python benchmarks/make_checkpoint.py 560m hf-560m
    python benchmarks/make_checkpoint.py 176b nb-176b --real-blocks 2

The first writes a Hugging Face checkpoint, one shard for the embeddings, one a block and one for
the last norm, as the 176B checkpoint is cut. With --real-blocks a converted folder is written
instead: so many blocks are real files and all others links to them, so that a full-depth run
needs little disk. The weights repeat after 16 million numbers, which no kernel notices.
"""

import argparse
import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from conversion import convert
from numpy_bloom.loading import DEMO
from numpy_bloom.weights.bounded import read_json
from numpy_bloom.weights.dtypes import Stored, narrow, widen
from numpy_bloom.weights.folder import (
    ArrayFile,
    block_file,
    model_files,
)
from numpy_bloom.weights.manifest import MANIFEST
from numpy_bloom.weights.safetensors_file import header_bytes

VOCABULARY = 250_880
SHAPES = {  # hidden size, heads, blocks: config.json of bigscience/bloom-* on the hub
    "560m": (1024, 16, 24),
    "1b1": (1536, 16, 24),
    "1b7": (2048, 16, 24),
    "3b": (2560, 32, 30),
    "7b1": (4096, 32, 30),
    "176b": (14336, 112, 70),
}
POOL = 1 << 24


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("target", type=Path)
    parser.add_argument("--real-blocks", type=int, metavar="N")
    args = parser.parse_args()
    hidden, heads, blocks = SHAPES[args.shape]
    if args.target.exists():
        parser.error(f"{args.target} is there already")
    if args.real_blocks is not None and not 1 <= args.real_blocks <= blocks:
        parser.error(f"--real-blocks is {args.real_blocks}, expected 1 to {blocks}")
    if args.real_blocks is None:
        write_checkpoint(args.target, hidden, heads, blocks)
        return
    with TemporaryDirectory(dir=args.target.resolve().parent) as folder:
        source = Path(folder, "checkpoint")
        write_checkpoint(source, hidden, heads, args.real_blocks)
        convert(source, args.target)
    link_blocks(args.target, blocks)


def write_checkpoint(
    folder: Path,
    hidden: int,
    heads: int,
    blocks: int,
    *,
    deviation: float = 0.02,
    vocabulary: int = VOCABULARY,
    dtype: str = "bfloat16",
) -> None:
    """A sharded Hugging Face checkpoint with the demo model's tokenizer."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    wide = random.standard_normal(POOL, dtype=np.float32) * np.float32(deviation)
    pool = narrow(wide, dtype)
    files = model_files(blocks, hidden, vocabulary)
    weight_map: dict[str, str] = {}
    for number, file in enumerate(files, start=1):
        shard = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        arrays = {file.prefix + name: (dtype, shape) for name, shape in file.shapes.items()}
        with (folder / shard).open("wb") as out:
            out.write(header_bytes(arrays))
            for piece in _numbers(file, pool, dtype):
                out.write(piece.data)
        weight_map |= dict.fromkeys(arrays, shard)
    index = {"metadata": {}, "weight_map": weight_map}  # transformers demands both
    _write_json(folder / "model.safetensors.index.json", index)
    config = {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "hidden_size": hidden,
        "n_head": heads,
        "n_layer": blocks,
        "vocab_size": vocabulary,
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": dtype,
    }
    _write_json(folder / "config.json", config)
    shutil.copy(DEMO / "tokenizer.json", folder)


def _numbers(file: ArrayFile, pool: Stored, dtype: str) -> Iterator[Stored]:
    """Matrices and biases from the pool, norms' weights likewise, but around 1."""
    around_one = narrow(1 + widen(pool[:65536], dtype), dtype)
    place = 0
    for name, shape in file.shapes.items():
        left = math.prod(shape)
        source = around_one if "layernorm.weight" in name or name == "ln_f.weight" else pool
        while left:
            place = 0 if place >= len(source) else place
            piece = source[place : place + left]
            yield piece
            left -= len(piece)
            place += len(piece)


def link_blocks(folder: Path, blocks: int) -> None:
    """Deepen a converted folder to so many blocks, by links to the block files it has."""
    manifest, config = read_json(folder / MANIFEST), read_json(folder / "config.json")
    real = config["n_layer"]
    for block in range(real, blocks):
        (folder / block_file(block)).symlink_to(block_file(block % real))
        manifest["files"][block_file(block)] = manifest["files"][block_file(block % real)]
    config["n_layer"] = blocks
    _write_json(folder / "config.json", config)
    content = (folder / "config.json").read_bytes()
    checksum = hashlib.sha256(content).hexdigest()
    manifest["files"]["config.json"] = {"size": len(content), "sha256": checksum}
    _write_json(folder / MANIFEST, manifest)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
