"""From a Hugging Face checkpoint to a folder that numpy_bloom can load. Without PyTorch."""

import numpy_bloom.interrupts  # noqa: F401  (before all that takes time)
from conversion.convert import convert

__all__ = ["convert"]
