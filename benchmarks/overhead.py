"""Overhead of Ray, Tune, MLflow and this project over bare training of the same small search.

Run by ``python -m benchmarks.run overhead``.

Bare: two plain processes with one thread each call ``trainables.trial.run_trial`` for one trial
after another, largest first, without Ray, MLflow and a driver. Searched: ``tinynet search`` on a
local Ray with two concurrent trials. Both times start with the processes and end with the last
result. The results must be bit-identical.
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
from trainables.spec import LocalReporter, TrialSpec
from trainables.trial import run_trial

TRIALS, EPOCHS, AT_ONCE = 8, 3, 2
# Number of (bare, searched) pairs; the order within a pair alternates.
PAIRS = 2
SETTINGS = (
    f"recipe.epochs={EPOCHS}",
    "search.finals=[]",
    f"search.trials={TRIALS}",
    f"run.concurrency={AT_ONCE}",
)
TIMES = ("ts", "seconds", "images_per_s")


class Run(NamedTuple):
    """One training of all trials.

    Attributes:
        wall: seconds.
        results: by run name.
        report: the JSON output of ``tinynet search``; empty for a bare run.
    """

    wall: float
    results: dict[RunName, TrialResult]
    report: dict[str, Any]

    @property
    def trained(self) -> float:
        """Wall seconds of all epochs if they were spread evenly over the concurrent trials."""
        return sum(result.seconds for result in self.results.values()) / AT_ONCE


def run() -> list[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pairs = [_pair(folder / str(turn), bare_first=turn % 2 == 0) for turn in range(PAIRS)]
        for a, b in pairs:
            require_equal(a, b, TRIALS)
        reruns = [searched(folder / "0" / "searched", SETTINGS) for _ in range(3)]
    bare_runs, search_runs = [a for a, _ in pairs], [b for _, b in pairs]
    parts = {
        part: median(b.report["seconds"][part] for b in search_runs)
        for part in ("total", "ray", "mlflow")
    }
    return [
        Row(
            f"(a) bare: {TRIALS} trials of {EPOCHS} epochs in {AT_ONCE} plain processes",
            median(a.wall for a in bare_runs),
            "s",
        ),
        Row("(b) the same through tinynet search", median(b.wall for b in search_runs), "s"),
        Row("(c) the same search again, nothing to do", median(c.wall for c in reruns), "s"),
        Row(
            "of c: the command's start, imports and exit",
            median(c.wall - c.report["seconds"]["total"] for c in reruns),
            "s",
        ),
        Row("b / a", median(b.wall / a.wall for a, b in pairs), "times"),
        Row(
            "overhead per trial: (b - a) / trials",
            median(b.wall - a.wall for a, b in pairs) / TRIALS,
            "s",
        ),
        Row(
            "of a: outside the epochs, per trial",
            median(a.wall - a.trained for a in bare_runs) / TRIALS,
            "s",
        ),
        Row(
            "of b: outside the epochs, per trial",
            median(b.wall - b.trained for b in search_runs) / TRIALS,
            "s",
        ),
        Row(
            "of b: the command's start, imports and exit, once",
            median(b.wall - b.report["seconds"]["total"] for b in search_runs),
            "s",
        ),
        Row("of b: Ray's start and stop, once", parts["ray"], "s"),
        Row("of b: MLflow, in a thread during the trials", parts["mlflow"], "s"),
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
            min(len(a.results) for a in bare_runs),
            f"of {TRIALS}",
        ),
    ]


def _pair(folder: Path, *, bare_first: bool) -> tuple[Run, Run]:
    if bare_first:
        return bare(folder / "bare", _specs(folder)), searched(folder / "searched", SETTINGS)
    search_run = searched(folder / "searched", SETTINGS)
    return bare(folder / "bare", _specs(folder)), search_run


def bare(storage: Path, specs: Sequence[TrialSpec]) -> Run:
    """Train the specs in plain processes, in the given order."""
    root = str(storage / "demo")
    started = time.perf_counter()
    with ProcessPoolExecutor(
        AT_ONCE, multiprocessing.get_context("spawn"), initializer=_one_thread
    ) as pool:
        results = list(
            pool.map(run_trial, specs, [root] * len(specs), [LocalReporter()] * len(specs))
        )
    return Run(time.perf_counter() - started, {result.run: result for result in results}, {})


def _specs(storage: Path) -> Sequence[TrialSpec]:
    """The trials of the search, in the order in which the search starts them."""
    config = load_config(preset="demo", settings=[*SETTINGS, f'storage.path="{storage}"'])
    plan = make_plan(config.resolve())
    candidates = [
        candidate_of(plan, network, epochs=EPOCHS) for network in planned_networks(plan, TRIALS)
    ]
    return [c.spec for c in sorted(candidates, key=lambda c: (-c.network.macs, c.run))]


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def searched(storage: Path, settings: Sequence[str]) -> Run:
    """Run the demo search with changed settings through the ``tinynet`` command."""
    arguments = ["search", "--preset", "demo", "--storage", str(storage), "--json"]
    for setting in settings:
        arguments += ["--set", setting]
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
    return Run(wall, store.results(store.finished()), json.loads(done.stdout))


def require_equal(a: Run, b: Run, count: int) -> None:
    """Require ``count`` results whose losses and accuracies of every epoch are bit-identical.

    Raises:
        RuntimeError: results differ or their number is not ``count``.
    """
    first = {name: _without_times(result) for name, result in a.results.items()}
    second = {name: _without_times(result) for name, result in b.results.items()}
    if len(first) != count or first != second:
        differ = sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
        raise RuntimeError(f"bare and searched results differ: {', '.join(differ)}")


def _without_times(result: TrialResult) -> list[Any]:
    epochs = [epoch.to_json() for epoch in result.epochs]
    return [
        result.status,
        *({k: v for k, v in epoch.items() if k not in TIMES} for epoch in epochs),
    ]
