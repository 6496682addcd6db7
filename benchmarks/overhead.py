"""What Ray, Tune, MLflow and this project add to bare training: the same small search trained with and without them.

Bare: two plain processes call ``trainables.trial.run_trial`` one trial after another, largest first, with one thread
each; no Ray, no MLflow, no driver. Searched: ``tinynet search`` on a local Ray, two trials at once. Both begin with
starting their processes and end with the last result. The results must be equal to the last bit.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.measure import Row
from tinynet_search.config import load_config
from tinynet_search.plan.candidates import candidate_of, planned_networks
from tinynet_search.plan.plan import make_plan
from tinynet_search.store.directory import SearchStore
from trainables.result import TrialResult
from trainables.run_name import RunName
from trainables.spec import Alone, TrialSpec
from trainables.trial import run_trial

TRIALS, EPOCHS, AT_ONCE = 8, 3, 2
# Pairs of a bare and a searched training, which of them goes first alternating.
PAIRS = 2
SETTINGS = (
    f"recipe.epochs={EPOCHS}",
    "search.finals=[]",
    f"search.trials={TRIALS}",
    f"run.concurrency={AT_ONCE}",
)
TIMES = ("ts", "seconds", "images_per_s")


class Taken(NamedTuple):
    """Wall seconds of one training of all trials, their results, and, searched, the driver's own account."""

    wall: float
    results: dict[RunName, TrialResult]
    report: dict[str, Any]

    @property
    def trained(self) -> float:
        """Seconds of wall that bare training needs when it is spread evenly: every epoch's, over the trials at once."""
        return sum(result.seconds for result in self.results.values()) / AT_ONCE


def run() -> list[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pairs = [_pair(folder / str(turn), bare_first=turn % 2 == 0) for turn in range(PAIRS)]
        for a, b in pairs:
            require_equal(a, b, TRIALS)
        again = [searched(folder / "0" / "searched", SETTINGS) for _ in range(3)]
    ones, others = [a for a, _ in pairs], [b for _, b in pairs]
    parts = {
        part: median(b.report["seconds"][part] for b in others)
        for part in ("total", "ray", "mlflow")
    }
    return [
        Row(
            f"(a) bare: {TRIALS} trials of {EPOCHS} epochs in {AT_ONCE} plain processes",
            median(a.wall for a in ones),
            "s",
        ),
        Row("(b) the same through tinynet search", median(b.wall for b in others), "s"),
        Row("(c) the same search again, nothing to do", median(c.wall for c in again), "s"),
        Row(
            "of c: the command's start, imports and exit",
            median(c.wall - c.report["seconds"]["total"] for c in again),
            "s",
        ),
        Row("b / a", median(b.wall / a.wall for a, b in pairs), "times"),
        Row(
            "overhead a trial: (b - a) / trials",
            median(b.wall - a.wall for a, b in pairs) / TRIALS,
            "s",
        ),
        Row(
            "of a: outside the epochs, a trial",
            median(a.wall - a.trained for a in ones) / TRIALS,
            "s",
        ),
        Row(
            "of b: outside the epochs, a trial",
            median(b.wall - b.trained for b in others) / TRIALS,
            "s",
        ),
        Row(
            "of b: the command's start, imports and exit, once",
            median(b.wall - b.report["seconds"]["total"] for b in others),
            "s",
        ),
        Row("of b: Ray's start and stop, once", parts["ray"], "s"),
        Row("of b: MLflow, in a thread beside the trials", parts["mlflow"], "s"),
        Row(
            "the trials' part of b / a",
            median(b.report["seconds"]["trials"] / a.wall for a, b in pairs),
            "times",
        ),
        Row(
            "seconds of the same epochs, b / a",
            median(b.trained / a.trained for a, b in pairs),
            "times",
        ),
        Row(
            "trials with results equal in a and b",
            min(len(a.results) for a in ones),
            f"of {TRIALS}",
        ),
    ]


def _pair(folder: Path, *, bare_first: bool) -> tuple[Taken, Taken]:
    if bare_first:
        return bare(folder / "bare", _specs(folder)), searched(folder / "searched", SETTINGS)
    found = searched(folder / "searched", SETTINGS)
    return bare(folder / "bare", _specs(folder)), found


def bare(storage: Path, specs: Sequence[TrialSpec]) -> Taken:
    """These trainings in plain processes, in this order."""
    root = str(storage / "demo")
    started = time.perf_counter()
    with ProcessPoolExecutor(
        AT_ONCE, multiprocessing.get_context("spawn"), initializer=_one_thread
    ) as pool:
        results = list(pool.map(run_trial, specs, [root] * len(specs), [Alone()] * len(specs)))
    return Taken(time.perf_counter() - started, {result.run: result for result in results}, {})


def _specs(storage: Path) -> Sequence[TrialSpec]:
    """The search's trials, in the order it starts them."""
    config = load_config(preset="demo", settings=[*SETTINGS, f'storage.path="{storage}"'])
    plan = make_plan(config.resolve())
    candidates = [
        candidate_of(plan, network, epochs=EPOCHS) for network in planned_networks(plan, TRIALS)
    ]
    return [c.spec for c in sorted(candidates, key=lambda c: (-c.network.macs, c.run))]


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def searched(storage: Path, settings: Sequence[str]) -> Taken:
    """The demo with some settings changed, through the command."""
    arguments = [
        "search",
        "--preset",
        "demo",
        "--storage",
        str(storage),
        "--json",
        *(a for s in settings for a in ("--set", s)),
    ]
    command = [str(Path(sys.executable).with_name("tinynet")), *arguments]
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")
    }
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    wall = time.perf_counter() - started
    store = SearchStore(str(storage / "demo"))
    return Taken(wall, store.results(store.finished()), json.loads(done.stdout))


def require_equal(a: Taken, b: Taken, count: int) -> None:
    """Every epoch's losses and accuracies, to the last bit."""
    figures = [
        {run: _timeless(result) for run, result in taken.results.items()} for taken in (a, b)
    ]
    if len(figures[0]) != count or figures[0] != figures[1]:
        differ = sorted(
            run for run in {*figures[0], *figures[1]} if figures[0].get(run) != figures[1].get(run)
        )
        raise RuntimeError(f"bare and searched results differ: {', '.join(differ)}")


def _timeless(result: TrialResult) -> list[Any]:
    epochs = [epoch.to_json() for epoch in result.epochs]
    return [
        result.status,
        *({k: v for k, v in epoch.items() if k not in TIMES} for epoch in epochs),
    ]
