"""Write what each engine reads, all from one Hugging Face checkpoint.

    python benchmarks/prepare.py hf-560m peers-560m

makes in peers-560m: checkpoint (a link, for transformers), numpy-bloom (the converted folder),
shards (one `.bin` a block, for the tutorial's loop), offload (accelerate's files) and model.gguf.
What is there already stays; what needs a library that is not installed is left out with a word.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from converted import read_converted
from engines import OURS, SMALLER
from gguf_file import write_gguf

from conversion import convert
from numpy_bloom.weights.dtypes import Stored
from numpy_bloom.weights.safetensors_file import read_stored


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    prepare(args.checkpoint, args.target)


def prepare(checkpoint: Path, target: Path) -> None:
    """Write all that is missing in `target`."""
    target.mkdir(parents=True, exist_ok=True)
    link, converted = target / "checkpoint", target / OURS
    if not link.exists():
        link.symlink_to(checkpoint.resolve())
    if not converted.exists():
        convert(checkpoint, converted)
    for name, dtype in SMALLER.items():
        if not (target / f"{OURS}-{name}").exists():
            head_dtype = "int8" if name == "int8" else None
            convert(checkpoint, target / f"{OURS}-{name}", dtype, head_dtype=head_dtype)
    parts: list[tuple[str, str, Callable[[Path, Path], None]]] = [
        ("shards", "torch", write_shards),
        ("offload", "accelerate", write_offload),
        ("model.gguf", "gguf", write_gguf),
    ]
    for name, library, write in parts:
        if (target / name).exists():
            continue
        if find_spec(library) is None:
            print(f"{name}: left out, {library} is not installed", file=sys.stderr)
            continue
        unfinished = target / f"{name}.partial"
        _remove(unfinished)
        write(converted if write is not write_offload else link, unfinished)
        unfinished.rename(target / name)
        print(f"{name}: written", file=sys.stderr)
    os.sync()  # so that no measurement waits for these bytes


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def write_shards(converted: Path, target: Path) -> None:
    """The checkpoint as the 176B one was published: `pytorch_model_00001-of-00072.bin` and on."""
    import torch  # noqa: PLC0415  (not everybody has it)

    def tensor(values: Stored, dtype: str) -> torch.Tensor:
        if dtype == "bfloat16":
            return torch.from_numpy(values.view("<i2")).view(torch.bfloat16)
        return torch.from_numpy(values)

    target.mkdir()
    _, contents = read_converted(converted)
    for number, (file, arrays) in enumerate(contents, start=1):
        tensors = {
            file.prefix + name: tensor(read_stored(array), array.dtype)
            for name, array in arrays.items()
        }
        torch.save(tensors, target / f"pytorch_model_{number:05d}-of-{len(contents):05d}.bin")
    shutil.copy(converted / "config.json", target)


def write_offload(checkpoint: Path, target: Path) -> None:
    """accelerate's own files, one an array, and their index."""
    import torch  # noqa: PLC0415
    from accelerate.utils import offload_state_dict  # noqa: PLC0415
    from transformers import BloomForCausalLM  # noqa: PLC0415

    model = BloomForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    offload_state_dict(target, model.state_dict())
    shutil.copy(checkpoint / "config.json", target)


if __name__ == "__main__":
    main()
