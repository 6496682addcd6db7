"""Tests how numbers, sizes, durations and dates are printed."""

import time

import pytest

from search_spaces.errors import RequestError
from tinynet_search.text import (
    data_size,
    duration,
    epoch_count,
    exact_data_size,
    in_seconds,
    local_minute,
    mebibytes,
    megabytes,
    memory_size,
    millions,
    number,
    percent,
    scaled,
    seconds,
    short_millions,
)

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (number(0.12345, 3), "0.123"),
        (number(None, 3), ""),
        (number(None, 1, missing="-"), "-"),
        (percent(75.249), "75.2 %"),
        (percent(75.249, 2), "75.25 %"),
        (millions(1_234_567_890), "1234.6M"),
        (millions(1_234_567_890, 2, grouped=True), "1,234.57M"),
        (short_millions(99_994_999), "99.99M"),
        (short_millions(100_000_000), "100M"),
        (scaled(1_984_000), "1.98M"),
        (scaled(1_500_000, "B"), "1.50MB"),
        (scaled(2_000_000_000), "2.00G"),
        (scaled(1_000), "1.00k"),
        (scaled(999), "999"),
        (scaled(12, "B"), "12 bytes"),
        (memory_size(1_500_000), "1.50MB"),
        (memory_size(1_500_000_000, grouped=True), "1,500.00MB"),
        (megabytes(12_400_000), "12 MB"),
        (megabytes(12_400_000, 2), "12.40 MB"),
        (mebibytes(500 * 2**20), "500 MiB"),
        (in_seconds(75.4), "75 s"),
        (in_seconds(75.44, 1), "75.4 s"),
        (duration(None), "?"),
        (duration(12), "12 s"),
        (duration(250), "4 min 10 s"),
        (duration(3900), "1 h 05 min"),
        (epoch_count(1), "1 epoch"),
        (epoch_count(12), "12 epochs"),
    ],
)
def test_numbers(result: str, expected: str) -> None:
    assert result == expected


@pytest.mark.parametrize(
    ("size", "estimated", "exact"),
    [
        (12_345_678_901, "12.3 GB", "12.35 GB"),
        (1_500_000_000, "1.5 GB", "1.50 GB"),
        (812_345_678, "812 MB", "812 MB"),
        (1_234_567, "1.23 MB", "1.23 MB"),
    ],
)
def test_sizes_of_image_sets(size: int, estimated: str, exact: str) -> None:
    """An estimate has three significant digits; an exact size has two decimals from 1 GB."""
    assert (data_size(size), exact_data_size(size)) == (estimated, exact)


def test_dates_are_local() -> None:
    noon = time.mktime((2026, 11, 23, 12, 5, 59, 0, 0, -1))
    assert local_minute(noon) == "2026-11-23 12:05"
    assert local_minute(None) == local_minute(0) == ""


def test_times_given_by_users() -> None:
    assert [seconds(text) for text in (None, "90", "90s", "30m", "1.5h")] == [
        None,
        90,
        90,
        1800,
        5400,
    ]
    for text in ("0", "m", "-5", "5d"):
        with pytest.raises(RequestError, match="is not a valid time"):
            seconds(text)
