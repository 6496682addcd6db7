"""The driver: plan, Tune, results, frontier, formula, final networks; on the search directory, and idempotent.

Running the same search again skips what has a result, resumes what has a checkpoint and starts the rest. Nothing
here is the truth: the driver can die anywhere and the next one finds all there is in the search directory.
"""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from search_spaces.samplers import ADAPTIVE
from tinynet_search.config import Config
from tinynet_search.errors import require
from tinynet_search.formula import TinyFormula
from tinynet_search.outcome import write_finals, write_formula, write_frontier
from tinynet_search.plan import agreed_plan, candidates_of, grow, too_large
from tinynet_search.store import Candidate, SearchStore


@dataclass
class Outcome:
    """What a search came to.

    Attributes:
        frontier: rows of ``frontier.json``, by rising c.
        lost: trials that ended without a result, after their processes were lost too often.
        new: trials and finals that were trained by this call.
        seconds: wall time by part: ``ray`` (start and stop), ``trials``, ``mlflow`` (in its own thread), ``total``.
        trained: seconds of bare training by this call, summed over its trials.
    """

    store: SearchStore
    plan: Mapping[str, Any]
    candidates: list[Candidate]
    finals: list[Candidate]
    frontier: list[dict[str, Any]]
    formula: TinyFormula
    tracking: str
    link: str | None = None
    at_once: int = 1
    new: int = 0
    lost: list[Candidate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    trained: float = 0.0

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        return self.store.results([c.run for c in (*self.candidates, *self.finals)])


def say(message: str) -> None:
    """Messages go to stderr: stdout is for what was asked."""
    print(message, file=sys.stderr, flush=True)


def run_search(config: Config, *, tracking: str | None = None, warn: Callable[[str], None] = say) -> Outcome:
    """Run a search to its end, or take it up where it was left.

    Args:
        config: from ``load_config``.
        tracking: MLflow's URI, before MLFLOW_TRACKING_URI and the configuration's.
        warn: called with one line for each thing worth knowing that does not stop the search.

    Raises:
        RequestError: the configuration contradicts the plan, or cannot run here; nothing was lost.
    """
    require("ray", "torch", "timm", "sklearn", "pymoo")
    from tinynet_search.tracking import resolve_uri
    from tinynet_search.tracking.connection import address
    from tinynet_search.tracking.publisher import Publisher

    started = time.perf_counter()
    store = SearchStore(config.url)
    uri = resolve_uri(tracking, config.tracking.uri, config.storage.path)
    plan = agreed_plan(store, config)
    driver = _Driver(config, store, plan, grow(plan, store, config))
    if warning := too_large(plan, (c.network["resolution"] for c in driver.candidates)):
        warn(warning)
    publisher = Publisher(store, dict(plan), uri, warn=warn)
    publisher.start()
    status = "KILLED"
    try:
        driver.publisher = publisher
        driver.run()
        outcome = driver.outcome(address(uri))
        publisher.conclude(outcome.frontier, outcome.formula.to_json(), store.read_json("finals.json") or [], None)
        status = "FINISHED"
    finally:
        sent = publisher.close(status=status)
    if not sent:
        outcome.notes.append(f"MLflow at {address(uri)} has not everything yet: tinynet sync --search {store.name} catches up")
    outcome.link = publisher.link
    outcome.seconds |= {"mlflow": publisher.busy_seconds, "total": time.perf_counter() - started}
    return outcome


class _Driver:
    """One run of a search: what is pending, through Tune, and what follows from it."""

    def __init__(self, config: Config, store: SearchStore, plan: Mapping[str, Any], candidates: list[Candidate]) -> None:
        self.config, self.store, self.plan, self.candidates = config, store, plan, candidates
        self.publisher: Any = None
        self.epochs = config.get_recipe().epochs
        self.finals: list[Candidate] = []
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}
        self.at_once = 1
        self.before: set[str] = set()
        self.started = time.time()
        self.formula: TinyFormula | None = None
        self.frontier: list[dict[str, Any]] = []

    def run(self) -> None:
        self.publisher.watch(self.candidates)
        self.before = self.store.finished()
        trials_left = bool(self._pending_trials()) or self._adaptive_left()
        if not trials_left:
            self._conclude()
        if trials_left or self._pending(self.finals):
            self._train()
        if self.formula is None:
            self._conclude()

    def _train(self) -> None:
        """Everything pending in one Tune run: the trials, then, once they have all ended, the finals that follow."""
        from tinynet_search.candidates import Phases
        from tinynet_search.cluster import cluster, concurrency, run_source
        from tinynet_search.progress import Progress

        started = time.perf_counter()
        with cluster(self.config):
            self.at_once = concurrency(self.config)
            progress = Progress(self.at_once)
            known = [*self.candidates, *self.finals]
            progress.watch(known, self.store.results([c.run for c in known]))
            trials = time.perf_counter()
            source = Phases([self._trial_source, lambda: self._final_source(progress)])
            most = self.config.search.trials + 2 * len(self.config.search.finals) + 1
            with progress.shown():
                run_source(self.config, self.store.url, source, most, self.at_once, progress)
            self.seconds["trials"] = time.perf_counter() - trials
        self.seconds["ray"] = time.perf_counter() - started - self.seconds["trials"]

    def _trial_source(self) -> Any:
        from tinynet_search.candidates import Adaptive, Fixed

        if self.plan["sampler"]["name"] in ADAPTIVE:
            return _Watched(Adaptive(self.plan, self.store, self.config.search.trials, self.epochs), self.publisher)
        # Largest first, so that no long trial is left for last.
        return Fixed(sorted(self._pending_trials(), key=lambda c: (-c.network["macs"], c.run)))

    def _final_source(self, progress: Any) -> Any:
        from tinynet_search.candidates import Fixed

        if self.formula is None:
            self._conclude()
        progress.watch(self.finals, self.store.results([c.run for c in self.finals]))
        return Fixed(self._pending(self.finals))

    def _conclude(self) -> None:
        """Frontier, formula and finals from the results there are."""
        self.candidates = candidates_of(self.plan, self.store, self.epochs)
        self.frontier = write_frontier(self.store, self.plan, self.candidates)
        self.formula = write_formula(self.store, self.plan, self.frontier)
        if self.formula.usable:
            budgets, rules = self.config.search.finals, self.config.search.compare
            self.finals, self.notes = write_finals(self.store, self.plan, self.formula, budgets, self.epochs, rules=rules)
            self.publisher.watch(self.finals)
        elif self.config.search.finals:
            self.notes = [f"no final networks: {self.formula.reason}"]

    def _pending_trials(self) -> list[Candidate]:
        return self._pending(self.candidates[: self.config.search.trials])

    def _pending(self, candidates: list[Candidate]) -> list[Candidate]:
        there = self.store.results([c.run for c in candidates])
        unique = {c.run: c for c in candidates if c.run not in there}
        return list(unique.values())

    def _adaptive_left(self) -> bool:
        return self.plan["sampler"]["name"] in ADAPTIVE and len(self.candidates) < self.config.search.trials

    def outcome(self, uri: str) -> Outcome:
        assert self.formula is not None
        everything = {c.run: c for c in (*self.candidates, *self.finals)}
        results = self.store.results(everything)
        new = [run for run in results if run not in self.before]
        return Outcome(
            self.store,
            self.plan,
            self.candidates,
            self.finals,
            self.frontier,
            self.formula,
            uri,
            at_once=self.at_once,
            new=len(new),
            lost=self._pending([*self.candidates[: self.config.search.trials], *self.finals]),
            notes=self.notes,
            seconds=self.seconds,
            trained=sum(e["seconds"] for run in new for e in results[run]["epochs"] if e["ts"] >= 1000 * self.started),
        )


class _Watched:
    """A source whose candidates the publisher learns of as they are drawn."""

    def __init__(self, source: Any, publisher: Any) -> None:
        self._source, self._publisher = source, publisher

    def next(self) -> Any:
        found = self._source.next()
        if isinstance(found, Candidate):
            self._publisher.watch([found])
        return found

    def done(self, candidate: Candidate) -> None:
        self._source.done(candidate)
