"""Helpers for tests: searches that run in seconds, and their results."""

import json
from pathlib import Path
from typing import Any

from tests.trainables.helpers import without_times
from tinynet_search.config import Config, load_config
from tinynet_search.plan.candidates import grow
from tinynet_search.plan.plan import load_or_create_plan
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
    """The demo on a few images: small networks of a few pixels, two epochs, no final networks.

    Args:
        at_once: Number of concurrent trials; each process first imports torch and Ray. None lets
            the search choose.
    """
    base = ["search.finals=[]", f'storage.path="{storage}"', f"search.trials={trials}"]
    base += [f"run.concurrency={at_once}"] if at_once else []
    return load_config(preset="demo", settings=[*TINY, *base, *settings])


def tiny_search(config: Config) -> tuple[SearchStore, Plan, list[Candidate]]:
    """Create the directory of a search with its plan and all candidates."""
    inputs = config.resolve()
    store = SearchStore(inputs.url)
    plan = load_or_create_plan(store, inputs)
    return store, plan, grow(plan, store, inputs.search.trials, inputs.recipe.epochs)


def tiny_arguments(storage: Path | str, *settings: str, trials: int = 6) -> list[str]:
    """The settings of ``tiny_config`` as arguments of ``tinynet search``."""
    all_settings = (*TINY, "search.finals=[]", *settings)
    return [
        "--preset",
        "demo",
        "--trials",
        str(trials),
        "--storage",
        str(storage),
        *[part for setting in all_settings for part in ("--set", setting)],
    ]


def results(storage: Path, name: str = "demo") -> dict[str, dict[str, Any]]:
    """The result files of a search, by run name."""
    return {
        p.stem: json.loads(p.read_text())
        for p in sorted((storage / name / "results").glob("*.json"))
    }


def trial_results(storage: Path, name: str = "demo") -> dict[RunName, TrialResult]:
    """The parsed results of a search, by run name."""
    read = (TrialResult.from_json(values, run) for run, values in results(storage, name).items())
    return {result.run: result for result in read}


def results_without_times(storage: Path, name: str = "demo") -> dict[RunName, dict[str, Any]]:
    """The results without the values that may differ between two runs of the same search."""
    return {run: without_times(result) for run, result in trial_results(storage, name).items()}


def summary(run: RunName, **changes: Any) -> ResultSummary:
    """The summary of a finished trial, with optional changes."""
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
