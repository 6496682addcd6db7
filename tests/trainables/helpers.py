"""Helpers for tests that train: a trial that takes a second, and results without times.

Used by the tests of this folder and of other folders.
"""

from typing import Any

from trainables.data import open_data
from trainables.recipe import get_recipe
from trainables.result import TrialResult
from trainables.spec import TrialSpec

DATA = {"name": "petals", "train": 96, "val": 48}


def tiny_spec(
    rdw: tuple[float, float, float] = (0.4, 0.4, 0.5),
    *,
    seed: int = 0,
    space: str = "efficientnet_mini",
    data: dict[str, Any] | None = None,
    **recipe: Any,
) -> TrialSpec:
    """A trial of a search space on a few images."""
    settings = {"epochs": 3, "batch": 32, "micro_batch": 32} | recipe
    data = data or DATA
    opened = open_data(data)
    trial_recipe = get_recipe("short", **settings)
    return TrialSpec(
        space, 1, rdw, len(opened.class_names), trial_recipe, data, opened.fingerprint, seed
    )


def without_times(result: TrialResult) -> dict[str, Any]:
    """A result without the values that may differ between two runs of the same trial."""
    epochs = [
        {k: v for k, v in e.to_json().items() if k not in ("ts", "seconds", "images_per_s")}
        for e in result.epochs
    ]
    return {
        "status": result.status,
        "id": result.run.id,
        "network": result.network,
        "epochs": epochs,
    }
