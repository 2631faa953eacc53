"""What each stored type costs in quality.

    python benchmarks/quality.py

prints a Markdown table: the relative error of a product of x and W transposed, for a Gaussian
matrix of bfloat16 numbers and for one with columns of outliers; and the perplexity of the demo
model on texts that it knows, Article 1 of the Declaration in 42 languages.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from converted import read_converted
from report import markdown

import numpy_bloom
from conversion import convert
from numpy_bloom.loading import DEMO
from numpy_bloom.weights.dtypes import Floats, Stored, narrow, widen
from numpy_bloom.weights.formats import FORMATS, encoder
from numpy_bloom.weights.safetensors_file import Spec, header_bytes

LANGUAGES = Path(__file__).parents[1] / "tests/reference/demo_languages.json"
SIZE, TOKENS = 2048, 64
OUTLIER_COLUMNS, OUTLIER_FACTOR = 10, 40


def main() -> None:
    """Measure and print."""
    random = np.random.default_rng(0)
    gaussian = random.normal(0, 0.02, (SIZE, SIZE)).astype(np.float32)
    outliers = gaussian.copy()
    outliers[:, random.choice(SIZE, OUTLIER_COLUMNS, replace=False)] *= OUTLIER_FACTOR
    x = random.normal(size=(TOKENS, SIZE)).astype(np.float32)
    articles = [row["article"] for row in json.loads(LANGUAGES.read_text(encoding="utf-8"))]
    lines = [("", "error, Gaussian", "error, outliers", "perplexity", "rise")]
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint_of_demo(Path(folder))
        base = None
        for dtype in ("bfloat16", "bfloat16-packed", "int8", "int4"):
            errors = [product_error(dtype, narrow(w, "bfloat16"), x) for w in (gaussian, outliers)]
            convert(folder, Path(folder) / dtype, dtype)
            value = perplexity(Path(folder) / dtype, articles)
            base = base or value
            told = (
                *(f"{error:.2%}" for error in errors),
                f"{value:.5f}",
                f"{value / base - 1:.3%}",
            )
            lines.append((dtype, *told))
    print(markdown(lines))


def product_error(dtype: str, weights: Stored, x: Floats) -> float:
    """Norm of the product's error over norm of the product, both in float64."""
    coder = encoder(dtype, weights.shape)
    coder.survey(weights, "bfloat16")
    stored = coder.encode(weights, "bfloat16").reshape(-1).view(np.uint8)
    beside = dict(zip(list(coder.arrays())[1:], coder.beside(), strict=True))
    format = FORMATS[dtype](weights.shape, beside)
    rounded = format.widen(format.tile(stored, slice(0, len(weights)))).astype(np.float64)
    exact = widen(weights, "bfloat16").astype(np.float64)
    return float(np.linalg.norm(x @ (rounded - exact).T) / np.linalg.norm(x @ exact.T))


def perplexity(folder: Path, texts: list[str]) -> float:
    """Of all texts together, each from its own beginning."""
    with numpy_bloom.load(folder) as model:
        scores = np.concatenate([model.score(model.encode(text)) for text in texts])
    return float(np.exp(-scores.mean(dtype=np.float64)))


def write_checkpoint_of_demo(folder: Path) -> None:
    """The demo model as a Hugging Face checkpoint."""
    arrays: dict[str, Spec] = {}
    content = b""
    for file, stored in read_converted(DEMO)[1]:
        for name, array in stored.items():
            arrays[file.prefix + name] = array.dtype, array.shape
            content += array.path.read_bytes()[array.offset : array.offset + array.nbytes]
    (folder / "model.safetensors").write_bytes(header_bytes(arrays) + content)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((DEMO / name).read_bytes())


if __name__ == "__main__":
    main()
