"""Plain text tables and durations, the same on a terminal and in a file."""

from collections.abc import Iterable, Sequence
from itertools import chain


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns wide enough for their cells; figures to the right, the first column and those without a head to the left."""
    grid = [list(head), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in grid) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column == 0 or not head[column] else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([line(grid[0]), "  ".join("-" * width for width in widths).rstrip(), *map(line, grid[1:])])


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
