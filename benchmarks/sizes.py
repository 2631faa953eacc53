"""How large each published BLOOM is in each stored type, computed from configs alone.

    python benchmarks/sizes.py

prints two Markdown tables: GB on disk, and GB that a pass reads. A pass reads each matrix once,
from disk or from memory; vectors (norms and biases) stay in memory. The word embeddings, which are
the head too, have the type that conversion gives them by default. Headers of files, the tokenizer,
the few rows of the embeddings that a pass looks up, and weights that do not fit into 12 bits do
not count.
"""

import math
from collections.abc import Sequence

from make_checkpoint import SHAPES, VOCABULARY
from report import markdown

from conversion.convert import HEAD_DTYPES
from numpy_bloom.weights.dtypes import STORED
from numpy_bloom.weights.folder import EMBEDDINGS, ArrayFile, model_files
from numpy_bloom.weights.formats import FORMATS

CHECKPOINT_DTYPE = "bfloat16"
"""What `keep` stands for; float16, which some are published in, is as large."""
VECTOR_BYTES = 2
"""Vectors keep the checkpoint's type: float16 or bfloat16 in all that are published."""


def main() -> None:
    """Compute and print."""
    disk = [("GB on disk", "parameters", *FORMATS)]
    reading = [("GB read by a pass", *FORMATS)]
    for model, (hidden, _, blocks) in SHAPES.items():
        files = model_files(blocks, hidden, VOCABULARY)
        shapes = [shape for file in files for shape in file.shapes.values()]
        vectors = VECTOR_BYTES * sum(shape[0] for shape in shapes if len(shape) == 1)
        matrices = [model_matrix_bytes(dtype, files) for dtype in FORMATS]
        parameters = f"{sum(map(math.prod, shapes)):,}"
        disk.append((f"bloom-{model}", parameters, *(gigabytes(n + vectors) for n in matrices)))
        reading.append((f"bloom-{model}", *map(gigabytes, matrices)))
    print(f"{markdown(disk)}\n\n{markdown(reading)}")


def model_matrix_bytes(dtype: str, files: Sequence[ArrayFile]) -> int:
    """Bytes of all matrices of a model whose blocks are of a stored type."""
    head_dtype = HEAD_DTYPES.get(dtype, dtype).replace("keep", CHECKPOINT_DTYPE)
    return sum(
        matrix_bytes(head_dtype if file.name == EMBEDDINGS else dtype, shape)
        for file in files
        for shape in file.shapes.values()
        if len(shape) > 1
    )


def matrix_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a matrix of a stored type and of what lies beside it, but for exceptions."""
    arrays = FORMATS[dtype].arrays(shape).values()
    return sum(
        math.prod(sizes) * STORED[stored].itemsize for stored, sizes in arrays if -1 not in sizes
    )


def gigabytes(nbytes: int) -> str:
    """With two decimals, or one if it is large."""
    return f"{nbytes / 1e9:.{2 if nbytes < 1e10 else 1}f}"


if __name__ == "__main__":
    main()
