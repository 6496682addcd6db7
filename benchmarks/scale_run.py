"""One process of ``search_scale``, which runs a kind of search and prints its cost as JSON.

``search_scale`` starts it: ``python -m benchmarks.scale_run KIND TRIALS FOLDER MLFLOW STARTED``.
"""

import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.simulated import EPOCHS, simulated_trial
from tinynet_search.config import Config, load_config
from tinynet_search.search.outcome import SearchOutcome

# The demo's mini space contains fewer than 4,000 networks, so a larger space is used.
SETTINGS = (
    'space.name="efficientnet_b0"',
    f"recipe.epochs={EPOCHS}",
    "search.finals=[]",
    "run.concurrency=2",
)
AT_ONCE = 2
POLL_SECONDS = 0.1
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def config_of(trials: int, folder: Path) -> Config:
    return load_config(
        preset="demo", settings=[*SETTINGS, f"search.trials={trials}", f'storage.path="{folder}"']
    )


def bare(trials: int, folder: Path, uri: str) -> dict[str, Any]:
    """Run the same trials through one plain Tuner, without reading a store or publishing.

    A searcher provides the trials: with a grid, Tune would copy the complete grid for each trial.
    """
    from tinynet_search.cluster.connect import cluster
    from tinynet_search.cluster.tune import quiet_tune
    from tinynet_search.plan.candidates import candidate_of, planned_networks
    from tinynet_search.plan.plan import make_plan

    config = config_of(trials, folder)
    plan = make_plan(config.resolve())
    specs = [
        candidate_of(plan, network, epochs=EPOCHS).spec
        for network in planned_networks(plan, trials)
    ]
    started = time.perf_counter()
    with cluster(config.run), tempfile.TemporaryDirectory() as scratch, quiet_tune():
        from ray import tune

        from benchmarks.list_searcher import ListSearcher

        tune.Tuner(
            tune.with_resources(simulated_trial, {"CPU": 1}),
            tune_config=tune.TuneConfig(
                search_alg=ListSearcher(
                    {"trial": spec.to_json(), "root": str(folder / "bare")} for spec in specs
                ),
                num_samples=trials,
                max_concurrent_trials=AT_ONCE,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(name="bare", storage_path=scratch, verbose=0),
        ).fit()
    return {
        "seconds": time.perf_counter() - started,
        "results": len(list((folder / "bare" / "results").iterdir())),
    }


def search(trials: int, folder: Path, uri: str) -> dict[str, Any]:
    """Run the real driver, store and publisher with simulated trials."""
    from tinynet_search.search.driver import run_search
    from tinynet_search.store.directory import SearchStore
    from tinynet_search.tracking.sync import sync_stored
    from trainables.executors import TRAINABLES

    TRAINABLES["inline"] = simulated_trial
    config, started = config_of(trials, folder), time.perf_counter()
    outcome = run_search(config, tracking=uri)
    ended, is_incomplete = time.perf_counter(), bool(outcome.notes)
    if is_incomplete:
        sync_stored(SearchStore(config.url), uri)
    return {
        "seconds": ended - started,
        "sync": time.perf_counter() - ended,
        "incomplete": is_incomplete,
        "results": len(outcome.results),
        "parts": outcome.seconds,
        "frontier": len(outcome.frontier),
    }


def rerun(trials: int, folder: Path, uri: str, *, publish: bool = True) -> dict[str, Any]:
    """Run the finished search again and time its parts.

    Args:
        publish: whether to keep the real publisher; if False, nothing is published.
    """
    from tinynet_search.search import conclusion, driver
    from tinynet_search.tracking import publisher

    if not publish:
        publisher.Publisher = NullPublisher  # pyright: ignore[reportAttributeAccessIssue]
    seconds: dict[str, float] = {}
    for name in ("write_frontier", "write_formula"):
        timed = _timed(getattr(conclusion, name), name.removeprefix("write_"), seconds)
        setattr(conclusion, name, timed)
    original = driver._Driver._outcome

    def outcome_of(*parts: Any, **named: Any) -> SearchOutcome:
        seconds["known"] = time.time()
        return original(*parts, **named)

    driver._Driver._outcome = outcome_of
    outcome = driver.run_search(config_of(trials, folder), tracking=uri)
    return {
        "results": len(outcome.results),
        "new": outcome.new,
        "parts": outcome.seconds,
        **seconds,
    }


def _timed(call: Any, name: str, seconds: dict[str, float]) -> Any:
    def timed(*args: Any) -> Any:
        started = time.perf_counter()
        try:
            return call(*args)
        finally:
            seconds[name] = time.perf_counter() - started

    return timed


class NullPublisher:
    """Replaces ``Publisher`` and publishes nothing."""

    link, busy_seconds, lag = None, 0.0, 0.0

    def __init__(self, *args: Any, **options: Any) -> None:
        return None

    def only_while(self, held: Any) -> None:
        return None

    def start(self) -> None:
        return None

    def watch(self, candidates: Any) -> None:
        return None

    def conclude(self, *parts: Any) -> None:
        return None

    def close(self, **options: Any) -> bool:
        return True


@dataclass
class PublisherMonitor:
    """Samples the CPU seconds of the publisher's threads while the process runs."""

    seconds: dict[int, float] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)

    def sample(self) -> None:
        while not self.ended.wait(POLL_SECONDS):
            for thread in threading.enumerate():
                native = thread.native_id
                if thread.name.startswith("tinynet") and native:
                    # 0.0 if the thread has ended: its last sample stays.
                    self.seconds[native] = _thread_seconds(native) or self.seconds.get(native, 0.0)

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.ended.set()
            thread.join()


def _thread_seconds(native: int) -> float:
    try:
        fields = Path(f"/proc/self/task/{native}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def memory() -> dict[str, float]:
    """Memory of this process in MB: peak resident, resident now, and unshared now."""
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in rollup[1:]}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "peak": peak,
        "rss": sizes["Rss"],
        "uss": sizes["Private_Clean"] + sizes["Private_Dirty"],
    }


KINDS = {
    "bare": bare,
    "search": search,
    "rerun_unpublished": partial(rerun, publish=False),
    "rerun": rerun,
}


def main(kind: str, trials: int, folder: Path, uri: str, started: float) -> dict[str, Any]:
    """Run one kind; ``started`` is the time at which ``search_scale`` started this process."""
    monitor = PublisherMonitor()
    with monitor.running():
        cost = KINDS[kind](trials, folder, uri)
    if "known" in cost:
        cost |= {"known": cost["known"] - started, "ended": time.time() - started}
    return cost | {
        "cpu": time.process_time(),
        "publisher_cpu": sum(monitor.seconds.values()),
        "memory": memory(),
    }


if __name__ == "__main__":
    print(
        json.dumps(
            main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], float(sys.argv[5]))
        )
    )
