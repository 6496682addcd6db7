"""Searches small enough to run in seconds."""

import json
from pathlib import Path
from typing import Any

from tests.trainables.helpers import without_times
from tinynet_search.config import Config, load_config
from tinynet_search.plan.candidates import grow
from tinynet_search.plan.plan import agreed_plan
from tinynet_search.store.directory import Candidate, SearchStore
from tinynet_search.store.schema import Plan
from trainables.result import FINISHED, ResultSummary, TrialResult
from trainables.run_name import RunName

TINY = (
    "data.train=96",
    "data.val=48",
    "recipe.epochs=2",
    "recipe.batch=32",
    "recipe.micro_batch=16",
    "space.r=[0.35, 0.7]",
    "space.d=[0.35, 1.0]",
    "space.w=[0.35, 1.2]",
    "space.band=[0.08, 0.5]",
)


def tiny_config(
    storage: Path | str, *settings: str, trials: int = 6, at_once: int | None = 1
) -> Config:
    """The demo on a few images: networks of a few pixels, two epochs, no finals.

    Args:
        at_once: trials that run at the same time, each in a process that imports torch and Ray first.
            None leaves the number to the search.
    """
    base = ["search.finals=[]", f'storage.path="{storage}"', f"search.trials={trials}"]
    base += [f"run.concurrency={at_once}"] if at_once else []
    return load_config(preset="demo", settings=[*TINY, *base, *settings])


def tiny_search(config: Config) -> tuple[SearchStore, Plan, list[Candidate]]:
    """The directory of a search, its plan, and all of its candidates, written down."""
    inputs = config.resolve()
    store = SearchStore(inputs.url)
    plan = agreed_plan(store, inputs)
    return store, plan, grow(plan, store, inputs.search.trials, inputs.recipe.epochs)


def tiny_arguments(storage: Path | str, *settings: str, trials: int = 6) -> list[str]:
    """The same as arguments of ``tinynet search``."""
    every = (*TINY, "search.finals=[]", *settings)
    return [
        "--preset",
        "demo",
        "--trials",
        str(trials),
        "--storage",
        str(storage),
        *[a for s in every for a in ("--set", s)],
    ]


def results(storage: Path, name: str = "demo") -> dict[str, dict[str, Any]]:
    """Result files of a search by name."""
    return {
        p.stem: json.loads(p.read_text())
        for p in sorted((storage / name / "results").glob("*.json"))
    }


def trial_results(storage: Path, name: str = "demo") -> dict[RunName, TrialResult]:
    """The same as they are read."""
    read = (TrialResult.from_json(values, run) for run, values in results(storage, name).items())
    return {result.run: result for result in read}


def timeless_results(storage: Path, name: str = "demo") -> dict[RunName, dict[str, Any]]:
    """The same, with everything taken out that may differ between two runs of the same search."""
    return {run: without_times(result) for run, result in trial_results(storage, name).items()}


def summary(run: RunName, **changes: Any) -> ResultSummary:
    """Of a trial that has finished, or as the changes have it."""
    values: dict[str, Any] = {
        "status": FINISHED,
        "reason": None,
        "detail": None,
        "top1": 50.0,
        "c": 1.0,
        "macs": 10**6,
        "params": 10**5,
        "resolution": 32,
        "started": 0.0,
        "ended": 1.0,
        "epochs_done": run.epochs,
        "seconds": 1.0,
        "first_ts": 1,
    }
    return ResultSummary(run=run, **{**values, **changes})
