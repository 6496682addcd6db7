"""Rows of a benchmark's table, and the time of calls that take turns.

Machines are shared and noisy. So calls that are compared run one after another in the same round, a ratio is the median
of the rounds' ratios, and a time is the least or the median of the rounds.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

Times = Mapping[str, list[float]]


@dataclass(frozen=True)
class Row:
    """One measured figure.

    Attributes:
        target: what was aimed for; None where nothing was.
        better: whether values ``below`` or ``above`` the target meet it.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    better: Literal["below", "above"] = "below"

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return (
            "met"
            if (self.value < self.target if self.better == "below" else self.value >= self.target)
            else "missed"
        )

    @property
    def aim(self) -> str:
        """The target as people read it."""
        if self.target is None:
            return ""
        return f"{'<' if self.better == 'below' else '>='} {self.target:,g} {self.unit}".rstrip()

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": float(f"{self.value:.6g}"),
            "unit": self.unit,
            "target": self.aim,
            "verdict": self.verdict,
        }


def in_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, least: float = 0.0
) -> dict[str, list[float]]:
    """Seconds a call by name, one value a round, after a round that warms up.

    Args:
        least: seconds for which a short call is repeated in each round.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            seconds = _seconds(call, least)
            if turn:
                times[name].append(seconds)
    return times


def ratio(times: Times, slow: str, fast: str) -> float:
    """How many times longer one call took than the other: the median of the rounds."""
    return median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def _seconds(call: Callable[[], object], least: float) -> float:
    count, started = 0, time.perf_counter()
    while True:
        call()
        count += 1
        passed = time.perf_counter() - started
        if passed >= least:
            return passed / count
