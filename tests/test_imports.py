"""What `import numpy_bloom` brings along."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["matplotlib", "torch", "transformers", "huggingface_hub", "tqdm"]
)
def test_import_without(module: str) -> None:
    """It works where the module cannot be imported, so it does not import it."""
    code = f"import sys; sys.modules[{module!r}] = None; import numpy_bloom"
    subprocess.run([sys.executable, "-c", code], check=True)
