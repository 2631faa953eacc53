"""What `import numpy_bloom` brings along."""

import subprocess
import sys

LOOK_ON = """
import sys

class Onlooker:
    asked = set()

    def find_spec(self, name, path=None, target=None):
        self.asked.add(name.partition(".")[0])

sys.meta_path.insert(0, Onlooker())
import numpy_bloom
print(*Onlooker.asked)
"""


def test_import_asks_for_nothing_that_is_slow_or_optional() -> None:
    """Not even where it is not installed, or within try."""
    asked = subprocess.check_output([sys.executable, "-c", LOOK_ON], text=True).split()
    assert {"numpy_bloom", "numpy", "tokenizers", "safetensors"} <= set(asked)
    assert set(asked).isdisjoint(
        {"matplotlib", "torch", "transformers", "huggingface_hub", "tqdm", "argparse", "conversion"}
    )
