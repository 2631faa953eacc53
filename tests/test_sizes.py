"""Sizes in bytes, read and written."""

import pytest

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.sizes import parse_size, size_text

GB = 10**9


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1", 1),
        ("400MB", 400 * 10**6),
        ("3GB", 3 * GB),
        ("2GiB", 2 << 30),
        ("2.5 GiB", 5 << 29),
        (" 1.5kb ", 1500),
        ("1KiB", 1024),
        ("7B", 7),
        ("0.25TB", GB * 250),
        ("1tib", 1 << 40),
        (123456789, 123456789),
        ("1.9B", 1),
    ],
)
def test_sizes(text: str | int, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text",
    ["", "GB", "0", "0GB", "0.4B", "-1GB", -5, "1e9", "1,5GB", "2 G B", "2GBs", "two", "inf", "nan",
     "1GB\n2GB", ".5GB", "5.GB"],
)  # fmt: skip
def test_no_sizes(text: str | int) -> None:
    with pytest.raises(NumpyBloomError, match="expected a size such as 400MB") as error:
        parse_size(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (5_858_304, "5.86 MB"),
        (999_499_999, "999 MB"),
        (999_500_000, "1 GB"),
        (352_468_271_104, "352 GB"),
        (705e9, "705 GB"),
        (1.41e12, "1.41 TB"),
    ],
)
def test_sizes_for_people(nbytes: float, text: str) -> None:
    assert size_text(nbytes) == text
