"""What `import numpy_bloom` brings along, and what its rooms take from each other."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import numpy_bloom

ROOT = Path(__file__).parent.parent

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


WITHOUT_CLUSTER = (
    LOOK_ON
    + """
with numpy_bloom.load() as model:
    assert len(list(model.generate([1, 2, 3], max_new_tokens=2))) == 2
    model.score([1, 2, 3])
import numpy_bloom.evaluate, numpy_bloom.generate, conversion.split
print(*Onlooker.asked)
"""
)

NOT_INSTALLED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("dask", "distributed"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from numpy_bloom.command import run_command
from numpy_bloom.generate import main
sys.argv[1:] = ["x", "--cluster", "local:1"]
sys.exit(run_command(main, "generate"))
"""


def test_nothing_of_dask_is_asked_for_without_a_cluster() -> None:
    asked = subprocess.check_output([sys.executable, "-c", WITHOUT_CLUSTER], text=True).split()
    assert {"numpy_bloom", "conversion"} <= set(asked)
    assert set(asked).isdisjoint({"dask", "distributed", "tornado", "cloudpickle"})


def test_a_cluster_without_dask_is_told_in_one_line() -> None:
    command = [sys.executable, "-c", NOT_INSTALLED]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        "generate: error: a cluster needs dask, which is not installed: "
        "pip install dask distributed\n"
    )


ROOMS = ("weights", "model", "running", "generation", "study")
"""Each may take from itself and from those before it."""
ABOVE = {"text_model", "bloom", "loading", "cluster", "conversion"}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_take_nothing_from_above(room: str) -> None:
    above = ABOVE | set(ROOMS[ROOMS.index(room) + 1 :])
    for path in (Path(numpy_bloom.__file__).parent / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                taken = str(node.module).removeprefix("numpy_bloom.").partition(".")[0]
                assert taken not in above, f"{path} takes from {node.module}"


@pytest.mark.parametrize("folder", ["benchmarks", "docs"])
def test_what_others_take_is_there(folder: str) -> None:
    """Nothing else of this suite runs them, for they need much time, or libraries."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            name = str(node.module)
            if name.startswith(("numpy_bloom", "conversion")) and ".cluster" not in name:
                module = importlib.import_module(name)
                for taken in node.names:
                    assert hasattr(module, taken.name), f"{path} takes {taken.name} from {name}"
