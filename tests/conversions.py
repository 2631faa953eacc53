"""What the tests of conversions share: folders compared, refusals checked, failures planted."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Checkpoint

from conversion import convert
from numpy_bloom.errors import NumpyBloomError


def converted(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write a checkpoint to `folder`/source and convert it."""
    convert(checkpoint.write(folder / "source"), folder / "model")
    return folder / "model"


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def refused(source: Path, told: str, target: Path | None = None, **options: Any) -> None:
    """The conversion fails, says so in one line, and leaves nothing."""
    target = target or source.with_name("model")
    beside = sorted(source.parent.iterdir())
    with pytest.raises(NumpyBloomError) as error:
        convert(source, target, **options)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(source.parent.iterdir()) == beside


def failing(real: Callable[..., Any], call: int, error: BaseException) -> Callable[..., Any]:
    """The same function, but its n-th call fails."""
    calls = itertools.count(1)

    def function(*args: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise error
        return real(*args, **options)

    return function
