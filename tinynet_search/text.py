"""Plain text tables and durations, the same on a terminal and in a file."""

import re
from collections.abc import Iterable, Sequence
from itertools import chain

from search_spaces.errors import RequestError

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns wide enough for their cells; figures to the right, the first column and those without a head to the left."""
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


def apart(groups: Iterable[Sequence[Sequence[str]]]) -> list[Sequence[str]]:
    """The rows of all groups, an empty one between two groups."""
    return [*chain.from_iterable([[""] * len(group[0]), *group] for group in groups)][1:]


def duration(seconds: float | None) -> str:
    """``1 h 05 min``, ``4 min 10 s``, ``12 s``."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def seconds(text: str | None) -> float | None:
    """``90``, ``90s``, ``30m`` or ``6h`` as seconds; None for None.

    Raises:
        RequestError: it is no such time.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)\s*([smh]?)", text.strip())
    if not found or not float(found[1]):
        raise RequestError(
            f"{text!r} is no time: give seconds, or a number with s, m or h behind it, such as 30m"
        )
    return float(found[1]) * UNITS[found[2]]


def counted(epochs: int) -> str:
    return f"{epochs} epoch" if epochs == 1 else f"{epochs} epochs"
