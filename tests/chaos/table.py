"""The kill table: which processes were killed, how often, and the lost time.

The chaos suite prints it and writes it as JSON.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.docs_tables import KILL_HEADERS, kill_rows
from benchmarks.run import RESULTS, commit, hardware
from tests.chaos.scenarios import Scenario
from tinynet_search.text import table


@dataclass(frozen=True)
class Row:
    """One scenario that passed: each result exists once and is equal, each epoch is in MLflow once.

    Attributes:
        launches: runs of the command.
        results, epochs: numbers at the end, each as planned.
        redone: epochs that were repeated.
        seconds: wall time beyond that of the undisturbed search.
    """

    scenario: Scenario
    kills: int
    launches: int
    results: int
    epochs: int
    redone: float
    seconds: float


def record(rows: list[Row], missing: list[str], seconds: float) -> dict[str, Any]:
    return {
        "benchmark": "chaos",
        "about": "A search whose processes were killed, compared with an undisturbed one.",
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
                "results": row.results,
                "epochs_in_mlflow": row.epochs,
                "epochs_redone": round(row.redone, 2),
                "seconds_lost": round(row.seconds, 1),
            }
            for row in rows
        ],
    }


def write(
    rows: list[Row], missing: list[str], seconds: float, path: Path = RESULTS / "chaos.json"
) -> None:
    path.write_text(json.dumps(record(rows, missing, seconds), indent=1) + "\n", encoding="utf-8")


def kill_table(rows: list[Row]) -> str:
    """One line per killed process and choice of moment, summed over scenarios, and the total."""
    return table(KILL_HEADERS, kill_rows(record(rows, [], 0.0)["scenarios"]))
