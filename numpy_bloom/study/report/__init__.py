"""A trace as one HTML page that needs nothing beside it."""

from numpy_bloom.study.report.numbers import NAMES
from numpy_bloom.study.report.page import check_page, write_report

__all__ = ["NAMES", "check_page", "write_report"]
