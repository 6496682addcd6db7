"""Rows of a benchmark's table, and timings of alternating calls. All benchmarks use it.

Machines are shared and noisy. Calls that are compared therefore run one after another in the same
round. A ratio is the median over the rounds of their ratios; a time is the minimum or the median
over the rounds.
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
        target: the value aimed for; None without a target.
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
        met = self.value < self.target if self.better == "below" else self.value >= self.target
        return "met" if met else "missed"

    @property
    def aim(self) -> str:
        """The target as text."""
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
    calls: Mapping[str, Callable[[], object]], rounds: int, min_seconds: float = 0.0
) -> dict[str, list[float]]:
    """Seconds per call by name, one value per round, after a warm-up round.

    Args:
        min_seconds: a call that is shorter is repeated for this long in each round.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            seconds = _seconds(call, min_seconds)
            if turn:
                times[name].append(seconds)
    return times


def ratio(times: Times, slow: str, fast: str) -> float:
    """How many times longer ``slow`` took than ``fast``: the median over the rounds."""
    return median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def _seconds(call: Callable[[], object], min_seconds: float) -> float:
    count, started = 0, time.perf_counter()
    while True:
        call()
        count += 1
        elapsed = time.perf_counter() - started
        if elapsed >= min_seconds:
            return elapsed / count
