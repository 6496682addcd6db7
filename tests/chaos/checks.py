"""What must hold after a search that was killed: nothing lost, nothing doubled, and the same bits as one that was not."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.search.helpers import timeless_results, trial_results
from tests.tracking.helpers import Window, wanted_points
from trainables.run_name import RunName

FOLLOWS = ("frontier.json", "formula.json", "finals.json")
WEIGHTS = "weights.safetensors"


def check_like(storage: Path, undisturbed: Path) -> int:
    """The same trials, each with one result, and the same bits in all that does not tell the time; how many."""
    found, wanted = trial_results(storage), trial_results(undisturbed)
    planned = planned_runs(undisturbed)
    assert set(wanted) == planned
    assert set(found) == planned, f"lost {planned - set(found)}, too many {set(found) - planned}"
    assert timeless_results(storage) == timeless_results(undisturbed)
    assert all(result.finished for result in found.values())
    for name in FOLLOWS:
        assert _bytes(storage, name) == _bytes(undisturbed, name), f"{name} differs"
    for run in planned:
        assert _bytes(storage, f"trials/{run}/{WEIGHTS}") == _bytes(
            undisturbed, f"trials/{run}/{WEIGHTS}"
        ), f"weights of {run} differ"
    return len(found)


def check_mlflow(storage: Path, uri: str, name: str = "demo") -> int:
    """One run a trial, every epoch once with the trial's own time, all FINISHED, the parent too; how many epochs."""
    window, found = Window(uri, name), trial_results(storage, name)
    assert set(window.runs) == set(found)
    assert (window.parent.info.status, window.statuses()) == ("FINISHED", ["FINISHED"] * len(found))
    points = {run: window.points(run) for run in window.runs}
    assert points == {run: wanted_points(result.epochs) for run, result in found.items()}
    return sum(len(result.epochs) for result in found.values())


def planned_runs(storage: Path) -> set[RunName]:
    """Runs of every candidate and final of a search, as its files name them."""
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
