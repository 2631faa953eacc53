"""A trace as one HTML page that needs nothing beside it."""

from numpy_bloom.study.report.numbers import NAMES
from numpy_bloom.study.report.page import write_report

__all__ = ["NAMES", "write_report"]
