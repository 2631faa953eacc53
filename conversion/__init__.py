"""From a Hugging Face checkpoint to a folder that numpy_bloom can load. Without PyTorch."""

from conversion.convert import convert

__all__ = ["convert"]
