"""Batches that are cut short, by Ctrl-C or a fault: all texts go on as if nothing had been."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support.batches import NEW, alone, needed_alone, some_prompts, to_the_end
from support.dials import model_folder
from support.interruptions import Faults, Interrupt

import numpy_bloom
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.running.model import Model

pytestmark = pytest.mark.usefixtures("many_chunks")


@pytest.fixture(scope="module")
def one_block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough for what goes on above the model."""
    return model_folder(tmp_path_factory.mktemp("batches"), blocks=1)


PACKAGE = Path(numpy_bloom.__file__).parent
JOINING = [PACKAGE / "generation/batch.py"]
LOOP = [PACKAGE / "generation" / name for name in ("generation.py", "sampling.py")]
LOOP += [PACKAGE / "running/model.py"]
READING = [PACKAGE / "generation" / name for name in ("continuation.py", "text.py")]
BELOW = [path for part in ("model", "weights") for path in (PACKAGE / part).rglob("*.py")]


@pytest.mark.parametrize(
    ("threads", "parts", "stride"),
    [(1, JOINING, 1), (1, READING, 3), (1, LOOP, 3), (1, BELOW, 101), (2, BELOW, 101)],
    ids=["joining", "reading", "loop", "pass", "pass of two threads"],
)
def test_going_on_after_ctrl_c(
    one_block: Path, step: int, threads: int, parts: Sequence[Path], stride: int
) -> None:
    """Wherever it came: what was cut short is done again, and all texts are the same. There is
    memory for one of them at a time."""
    prompts = [[5] * 12, [6] * 12]
    least, _ = needed_alone(one_block, threads, prompts)
    stride *= step
    with numpy_bloom.load(one_block, memory=least, threads=threads) as model:
        expected = alone(model, prompts, max_new_tokens=2)
        generations = model.generate_batch(prompts, max_new_tokens=2)
        with Interrupt(0, parts) as undisturbed:
            assert to_the_end(generations) == expected
        assert undisturbed.lines > 10 * stride
        interrupted = 0
        for after in range(1, undisturbed.lines, stride):
            generations = model.generate_batch(prompts, max_new_tokens=2)
            try:
                with Interrupt(after, parts):
                    to_the_end(generations)
            except KeyboardInterrupt:
                interrupted += 1
            assert to_the_end(generations) == expected
            del generations
        assert interrupted > 10


@pytest.mark.parametrize("threads", [1, 2])
def test_going_on_after_faults(
    chunked_folder: Path, monkeypatch: pytest.MonkeyPatch, step: int, threads: int
) -> None:
    numbers = random.Random(threads)
    prompts = some_prompts(numbers, 4)
    least, _ = needed_alone(chunked_folder, threads, prompts)
    with numpy_bloom.load(chunked_folder, memory=least + 40_000, threads=threads) as model:
        expected = alone(model, prompts, max_new_tokens=NEW)
        faults, told = Faults(chunked_folder, monkeypatch), 0
        kinds = [kind for kind in faults.kinds if kind != "the file is cut"]
        for _ in range(24 // step):
            generations = model.generate_batch(prompts, max_new_tokens=NEW)
            kind = numbers.choice(kinds)
            fault, happen = faults.kinds[kind]
            fault.arm(numbers.randrange(1, 200), happen)
            try:
                to_the_end(generations)
            except (NumpyBloomError, KeyboardInterrupt, MemoryError):
                told += 1
            fault.disarm()
            assert to_the_end(generations) == expected
            del generations
        assert told > 8 // step


def test_going_on_after_output_that_is_not_finite(
    chunked_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass was complete by then, and is done again."""
    prompts = some_prompts(random.Random(4), 4)
    run = Model.run
    with numpy_bloom.load(chunked_folder, threads=1) as model:
        expected = alone(model, prompts, max_new_tokens=NEW)
        generations = model.generate_batch(prompts, max_new_tokens=NEW)
        for place in (0, 2):
            with monkeypatch.context() as patch:
                patch.setattr(Model, "run", lambda *args, **options: run(*args, **options) * np.nan)
                with pytest.raises(NumpyBloomError, match="not finite"):
                    next(generations[place])
            next(generations[place])
        assert to_the_end(generations) == expected
