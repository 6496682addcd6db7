"""Compares a search whose processes were killed with an undisturbed one.

No result is lost or duplicated, and the results are equal bit for bit.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.search.helpers import results_without_times, trial_results
from tests.tracking.helpers import MlflowSearch, expected_points
from trainables.run_name import RunName

CONCLUSIONS = ("frontier.json", "formula.json", "finals.json")
WEIGHTS = "weights.safetensors"


def check_same_results(storage: Path, undisturbed: Path) -> int:
    """Check that both searches have equal results, apart from times; returns their number."""
    results, expected = trial_results(storage), trial_results(undisturbed)
    planned = planned_runs(undisturbed)
    assert set(expected) == planned
    assert set(results) == planned, (
        f"missing {planned - set(results)}, unexpected {set(results) - planned}"
    )
    assert results_without_times(storage) == results_without_times(undisturbed)
    assert all(result.finished for result in results.values())
    for name in CONCLUSIONS:
        assert _bytes(storage, name) == _bytes(undisturbed, name), f"{name} differs"
    for run in planned:
        assert _bytes(storage, f"trials/{run}/{WEIGHTS}") == _bytes(
            undisturbed, f"trials/{run}/{WEIGHTS}"
        ), f"weights of {run} differ"
    return len(results)


def check_mlflow(storage: Path, uri: str, name: str = "demo") -> int:
    """Check that MLflow has one finished run per trial, and each epoch once at the trial's time.

    Returns the number of epochs.
    """
    in_mlflow, results = MlflowSearch(uri, name), trial_results(storage, name)
    assert set(in_mlflow.runs) == set(results)
    assert (in_mlflow.parent.info.status, in_mlflow.statuses()) == (
        "FINISHED",
        ["FINISHED"] * len(results),
    )
    points = {run: in_mlflow.points(run) for run in in_mlflow.runs}
    assert points == {run: expected_points(result.epochs) for run, result in results.items()}
    return sum(len(result.epochs) for result in results.values())


def planned_runs(storage: Path) -> set[RunName]:
    """Run names of every candidate and final of a search, from its files."""
    folder = storage / "demo"
    batches: list[Mapping[str, Any]] = [
        json.loads(path.read_text()) for path in sorted((folder / "candidates").iterdir())
    ]
    finals = (
        json.loads((folder / "finals.json").read_text())
        if (folder / "finals.json").exists()
        else []
    )
    epochs = json.loads((folder / "plan.json").read_text())["recipe"]["epochs"]
    return {RunName(row["id"], epochs) for batch in batches for row in batch["candidates"]} | {
        RunName.parse(row["run"]) for row in finals
    }


def _bytes(storage: Path, name: str) -> bytes | None:
    path = storage / "demo" / name
    return path.read_bytes() if path.exists() else None
