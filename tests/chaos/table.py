"""The kill table: what was killed, how often, what it cost; printed and kept as JSON."""

import json
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.run import RESULTS, commit, hardware
from tests.chaos.scenarios import Scenario
from tinynet_search.tables import table

HEADS = ("killed", "when", "kills", "epochs redone", "seconds lost", "lost", "doubled")


@dataclass(frozen=True)
class Row:
    """One scenario that held, so that nothing was lost and nothing doubled: ``redone`` in epochs, ``seconds`` beyond the undisturbed."""

    scenario: Scenario
    kills: int
    launches: int
    redone: float
    seconds: float


def record(rows: list[Row], missing: list[str], seconds: float) -> dict[str, Any]:
    return {
        "benchmark": "chaos",
        "about": "A search that was killed, beside one that was not.",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": hardware(),
        "seconds": round(seconds, 1),
        "kills": sum(row.kills for row in rows),
        "missing": missing,
        "scenarios": [
            {
                "name": row.scenario.name,
                "executor": row.scenario.executor,
                "mlflow": "server" if row.scenario.server else "SQLite",
                "kills": [kill.name for kill in row.scenario.kills],
                "launches": row.launches,
                "epochs_redone": round(row.redone, 2),
                "seconds_lost": round(row.seconds, 1),
            }
            for row in rows
        ],
    }


def keep(rows: list[Row], missing: list[str], seconds: float, path: Path = RESULTS / "chaos.json") -> None:
    path.write_text(json.dumps(record(rows, missing, seconds), indent=1) + "\n", encoding="utf-8")


def shown(rows: list[Row]) -> str:
    """A line for what was killed and how the moment was chosen, summed over scenarios, and the sum of all."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[_group(row)].append(row)
    lines = [(*key, *_sums(group)) for key, group in groups.items()]
    return table(HEADS, [*lines, ("all", "", *_sums(rows))])


def _group(row: Row) -> tuple[str, str]:
    victims = list(dict.fromkeys(kill.victim for kill in row.scenario.kills))
    when = "at named points" if row.scenario.kills[0].point else "at random moments"
    return f"{' and '.join(victims)} ({row.scenario.executor})", when


def _sums(rows: list[Row]) -> tuple[str, ...]:
    redone, lost = sum(row.redone for row in rows), sum(row.seconds for row in rows)
    return str(sum(row.kills for row in rows)), f"{redone:.1f}", f"{lost:.0f}", "0", "0"
