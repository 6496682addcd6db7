"""Formats numbers, sizes, durations, dates and tables as plain text.

Every command and log line uses these helpers, so that a quantity has the same form everywhere.
"""

import re
import time
from collections.abc import Iterable, Sequence

from search_spaces.errors import RequestError

SECONDS_PER_UNIT = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are as wide as their widest cell.

    The first column and columns without a heading are aligned left, the others right.
    """
    grid = [list(head), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in grid) for column in range(len(head))]

    left = [column == 0 or not name for column, name in enumerate(head)]

    def line(row: Sequence[str]) -> str:
        cells = []
        for cell, width, is_left in zip(row, widths, left, strict=True):
            cells.append(cell.ljust(width) if is_left else cell.rjust(width))
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths).rstrip()
    return "\n".join([line(grid[0]), rule, *map(line, grid[1:])])


def with_blank_rows(groups: Iterable[Sequence[Sequence[str]]]) -> list[Sequence[str]]:
    """The rows of all groups, with a blank row between two groups."""
    rows: list[Sequence[str]] = []
    for group in groups:
        if rows:
            rows.append([""] * len(group[0]))
        rows += group
    return rows


def number(value: float | None, digits: int, missing: str = "") -> str:
    """``12.3`` with the given number of decimals; ``missing`` for None."""
    return missing if value is None else f"{value:.{digits}f}"


def percent(value: float, digits: int = 1) -> str:
    """``75.2 %``, for a value that is already in percent."""
    return f"{value:.{digits}f} %"


def millions(value: float, digits: int = 1, *, grouped: bool = False) -> str:
    """``1234.5M``; with ``grouped``, for sentences, ``1,234.5M``."""
    return f"{value / 1e6:{',' if grouped else ''}.{digits}f}M"


def short_millions(value: float) -> str:
    """``12.34M``, and from 100 million ``123M``; for tables with many columns."""
    return millions(value, 2 if value < 1e8 else 0)


def scaled(value: float, unit: str = "") -> str:
    """A value with an SI prefix: ``1.98M``, ``1.50MB``; below 1000 ``12`` and ``12 bytes``."""
    for scale, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.2f}{prefix}{unit}"
    return f"{value:g} bytes" if unit else f"{value:g}"


def memory_size(size: float, *, grouped: bool = False) -> str:
    """Bytes of memory in the form of FLOPs and parameters: ``1.50MB``."""
    return f"{millions(size, 2, grouped=grouped)}B"


def megabytes(size: float, digits: int = 0) -> str:
    """Bytes of files: ``12 MB``."""
    return f"{size / 1e6:.{digits}f} MB"


def mebibytes(size: float) -> str:
    """Bytes of a limit that is a multiple of 2^20: ``500 MiB``."""
    return f"{size / 2**20:.0f} MiB"


def data_size(size: float) -> str:
    """The estimated size of an image set, to three significant digits: ``12.3 GB``, ``812 MB``."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def exact_data_size(size: float) -> str:
    """The exact size of an image set: two decimals from 1 GB, ``12.35 GB``, else ``812 MB``."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else data_size(size)


def in_seconds(value: float, digits: int = 0) -> str:
    """``75 s``, for times that are compared with each other; ``duration`` is for waiting times."""
    return f"{value:.{digits}f} s"


def duration(seconds: float | None) -> str:
    """``1 h 05 min``, ``4 min 10 s``, ``12 s``; ``?`` for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def local_minute(seconds: float | None) -> str:
    """A Unix timestamp in local time, ``2026-11-23 03:44``; empty for None and 0."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""


def seconds(text: str | None) -> float | None:
    """``90``, ``90s``, ``30m`` or ``6h`` in seconds; None for None.

    Raises:
        RequestError: the text is not a valid time.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)\s*([smh]?)", text.strip())
    if not match or not float(match[1]):
        raise RequestError(
            f"{text!r} is not a valid time: expected seconds, or a number with the unit s, m or h, "
            "such as 30m"
        )
    return float(match[1]) * SECONDS_PER_UNIT[match[2]]


def epoch_count(epochs: int) -> str:
    """``1 epoch``, ``12 epochs``."""
    return f"{epochs} epoch" if epochs == 1 else f"{epochs} epochs"
