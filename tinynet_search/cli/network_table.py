"""Formats tables of networks.

Used by ``tinynet search``, its ``--dry-run`` and ``tinynet frontier``.
"""

from collections.abc import Sequence
from typing import Protocol

from tinynet_search.text import number, short_millions, table


class ShownNetwork(Protocol):
    """A row of a table of networks."""

    @property
    def id(self) -> str | None: ...
    @property
    def r(self) -> float: ...
    @property
    def d(self) -> float: ...
    @property
    def w(self) -> float: ...
    @property
    def resolution(self) -> int: ...
    @property
    def macs(self) -> int: ...
    @property
    def c(self) -> float: ...
    @property
    def params(self) -> int: ...


class ShownModel(ShownNetwork, Protocol):
    """A row of the frontier's table."""

    @property
    def top1(self) -> float | None: ...
    @property
    def pareto_rank(self) -> int | None: ...


def figures(row: ShownNetwork) -> tuple[str, ...]:
    """The first cells of a row in all tables of networks."""
    return (
        str(row.id),
        *(number(value, 3) for value in (row.r, row.d, row.w)),
        f"{row.resolution:g}",
        short_millions(row.macs),
        number(row.c, 3),
        short_millions(row.params),
    )


def frontier_table(rows: Sequence[ShownModel]) -> str:
    """The table of frontier models."""
    head = ("trial", "r", "d", "w", "pixels", "FLOPs", "c", "params", "top-1 %", "front")
    cells = [(*figures(row), number(row.top1, 1), number(row.pareto_rank, 0)) for row in rows]
    return table(head, cells)
