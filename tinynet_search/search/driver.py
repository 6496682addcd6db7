"""The driver: plan, Tune, results, frontier, formula, final networks; on the search directory, and idempotent.

Running the same search again skips what has a result, resumes what has a checkpoint and starts the rest. Nothing
here is the truth: the driver can die anywhere and the next one finds all there is in the search directory.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from search_spaces import RequestError
from search_spaces.samplers import ADAPTIVE
from tinynet_search.config import Config
from tinynet_search.errors import require
from tinynet_search.formula.tiny_formula import TinyFormula
from tinynet_search.plan.candidates import candidates_of, grow, training_macs
from tinynet_search.plan.plan import agreed_plan, too_large
from tinynet_search.search.failures import FailureTally
from tinynet_search.search.outcome import (
    continued,
    prepare,
    write_finals,
    write_formula,
    write_frontier,
)
from tinynet_search.search.retry import RETRIED, set_aside
from tinynet_search.signals import Stopping, stoppable
from tinynet_search.store.directory import FINALS, Candidate, SearchStore
from tinynet_search.store.lease import Lease, read_lease
from trainables.trial import write_failure

# Seconds that the publisher of an interrupted search gets.
FAREWELL = 15.0


@dataclass
class SearchOutcome:
    """What a search came to.

    Attributes:
        frontier: rows of ``frontier.json``, by rising c.
        lost: trials that ended without a result, after their processes were lost too often; lost_why: of what, where it is known.
        stopped: why the search ended before its work was done, None where it did not.
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
    lost_why: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    continued: list[Candidate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    trained: float = 0.0

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """Summaries of the results there are, by run name; see ``SearchStore.summary``."""
        return self.store.summaries(
            [c.run for c in (*self.candidates, *self.finals, *self.continued)]
        )


def say(message: str) -> None:
    """Messages go to stderr: stdout is for what was asked."""
    print(message, file=sys.stderr, flush=True)


def run_search(
    config: Config,
    *,
    tracking: str | None = None,
    retry: Collection[str] = (),
    warn: Callable[[str], None] = say,
) -> SearchOutcome:
    """Run a search to its end, or take it up where it was left.

    The first Ctrl-C or SIGTERM has the trainings commit a checkpoint, the second ends at once.

    Args:
        config: from ``load_config``.
        tracking: MLflow's URI, before MLFLOW_TRACKING_URI and the configuration's.
        retry: reasons of failed trials that are to be trained again; ``failed`` is any.
        warn: called with one line for each thing worth knowing that does not stop the search.

    Raises:
        RequestError: the configuration contradicts the plan, cannot run here, or another driver runs this search;
            nothing was lost.
        KeyboardInterrupt: it was interrupted; everything is where it was left.
    """
    require("ray", "torch", "timm", "sklearn", "pymoo")
    from tinynet_search.mlflow_client.connection import resolve_uri

    started = time.perf_counter()
    store = SearchStore(config.url)
    uri = resolve_uri(tracking, config.tracking.uri, config.storage.path)
    plan = agreed_plan(store, config)
    with stoppable(warn) as stopping, Lease(store.folder, f"search {store.url}", "search") as lease:
        driver = _Driver(config, store, plan, grow(plan, store, config), lease, stopping, warn)
        if again := set_aside(store, retry, driver.trainable()):
            warn(
                f"failed trials that are trained again: {again}; their results so far are in {store.at(RETRIED)}"
            )
        if shorter := driver.shorter():
            warn(
                f"trials that have a result for other epochs, and start anew for {driver.epochs}: {shorter}, by the cosine schedule"
            )
        if warning := too_large(plan, (c.network["resolution"] for c in driver.candidates)):
            warn(warning)
        outcome = _published(driver, uri, warn)
    outcome.seconds["total"] = time.perf_counter() - started
    return outcome


def _published(driver: "_Driver", uri: str, warn: Callable[[str], None]) -> SearchOutcome:
    """The driver's run with a publisher beside it, whatever becomes of either."""
    from tinynet_search.mlflow_client.connection import address
    from tinynet_search.tracking.publisher import Publisher

    publisher = Publisher(driver.store, dict(driver.plan), uri, warn=warn)
    publisher.only_while(driver.lease.held)
    publisher.start()
    status = "KILLED"
    try:
        driver.publisher = publisher
        driver.run()
        outcome = driver.outcome(address(uri))
        publisher.conclude(
            outcome.frontier, outcome.formula.to_json(), driver.store.read_json(FINALS) or []
        )
        status = "KILLED" if outcome.stopped or outcome.lost else "FINISHED"
    finally:
        # An interrupted search does not wait for all that is to be sent: the next run, or tinynet sync, goes on with it.
        if driver.stopping.signal and not driver.stopping.insisted:
            warn(
                f"checkpoints are committed; MLflow gets {FAREWELL:.0f} s at most (again to stop at once)"
            )
        farewell = 0.0 if driver.stopping.insisted else FAREWELL if driver.stopping.signal else None
        sent = publisher.close(timeout=farewell, status=status)
    if not sent:
        outcome.notes.append(
            f"MLflow at {address(uri)} has not everything yet: tinynet sync --search {driver.store.name} catches up"
        )
    outcome.link = publisher.link
    outcome.seconds["mlflow"] = publisher.busy_seconds
    return outcome


class _Driver:
    """One run of a search: what is pending, through Tune, and what follows from it."""

    def __init__(
        self,
        config: Config,
        store: SearchStore,
        plan: Mapping[str, Any],
        candidates: list[Candidate],
        lease: Lease,
        stopping: Stopping,
        say: Callable[[str], None],
    ) -> None:
        self.say = say
        self.config, self.store, self.plan, self.candidates = config, store, plan, candidates
        self.lease, self.stopping = lease, stopping
        self.publisher: Any = None
        self.epochs = config.get_recipe().epochs
        self.finals: list[Candidate] = []
        self.continued: list[Candidate] = []
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}
        self.at_once = 1
        self.before: set[str] = set()
        self.started = time.time()
        self.formula: TinyFormula | None = None
        self.frontier: list[dict[str, Any]] = []
        self.lost_why: dict[str, str] = {}
        self.trials: set[str] = set()
        self.tally = FailureTally(config.search.trials, config.run.stop_at_failed)
        lease.when_lost(lambda: stopping.ask("another driver has taken this search over"))

    def run(self) -> None:
        self.publisher.watch(self.candidates)
        self.before = self.store.finished()
        self.trials = {c.run for c in self._wanted()}
        for run, result in self.store.summaries([c.run for c in self.candidates]).items():
            self.tally.add(run, result)
        trials_left = bool(self._pending_trials()) or self._adaptive_left()
        if trials_left:
            self._judge()
        else:
            self._conclude()
        if not self.stopping.why and (
            trials_left or self._pending([*self.finals, *self.continued])
        ):
            self._train()
        if self.formula is None:
            self._conclude()
        elif self.continued:
            self.frontier = write_frontier(self.store, self.plan, self.candidates)

    def _train(self) -> None:
        """Everything pending in one Tune run: the trials; once they have all ended the finals that follow; then what is continued."""
        from tinynet_search.callbacks.crashes import CrashTally
        from tinynet_search.callbacks.metrics import SearchMetrics
        from tinynet_search.callbacks.placement_groups import PlacementGroupCleaner
        from tinynet_search.callbacks.progress import Progress
        from tinynet_search.callbacks.watchdog import Watchdog
        from tinynet_search.cluster.connect import cluster
        from tinynet_search.cluster.placement import wait_for_placement
        from tinynet_search.cluster.tune import Guarded, Phases, run_source

        started = time.perf_counter()
        with cluster(self.config):
            pending = [*self._pending_trials(), *self._pending([*self.finals, *self.continued])]
            place = wait_for_placement(
                self.config, [training_macs(self.plan, c) for c in pending], self.say
            )
            self.config, self.at_once = place.config, place.at_once
            progress = Progress(self.at_once)
            known = [*self.candidates, *self.finals, *self.continued]
            progress.watch(known, self.store.summaries([c.run for c in known]))
            trials = time.perf_counter()
            phases = Phases(
                [self._trial_source, lambda: self._final_source(progress)], idle=prepare
            )
            losses = CrashTally(self.store, self.config.run.max_failures)

            def ended(candidate: Candidate) -> None:
                if guilt := self._guilt(candidate, losses):
                    progress.expect(candidate.run, "failed", guilt)
                self._ended(candidate)

            def again(candidate: Candidate) -> bool:
                if early := losses.given_up_early(candidate):
                    progress.expect(candidate.run, "waiting")
                return early

            source = Guarded(phases, self.stopping, ended, again)
            most = self.config.search.trials * 2 + 2 * len(self.config.search.finals) + 1
            gauges = SearchMetrics(self.store.name, progress.rows, lambda: self.publisher.lag)
            watching = [
                progress,
                gauges,
                losses,
                Watchdog(self.store.url, self.config.run.trial_timeout),
                PlacementGroupCleaner(),
            ]
            with progress.shown(), self.stopping.gently(self.lease.ask_to_stop):
                run_source(
                    self.config,
                    self.store.url,
                    source,
                    most,
                    self.at_once,
                    watching,
                    self.lease.stop_file,
                )
            gauges.look()
            self.stopping.deliver()
            self._still_ours()
            self.seconds["trials"] = time.perf_counter() - trials
            self.lost_why = {
                run: row.why for run, row in progress.rows.items() if row.state == "lost"
            }
        self.seconds["ray"] = time.perf_counter() - started - self.seconds["trials"]

    def _still_ours(self) -> None:
        """Raises RequestError where another driver has taken over: what follows is its."""
        if not self.lease.held():
            holder = read_lease(self.store.folder)
            by = f" by {holder.described}" if holder else ""
            raise RequestError(f"search {self.store.url} has been taken over{by}: it goes on there")

    def trainable(self) -> set[str]:
        """Runs that this command can train: wanted trials, final networks that are written down, continued models."""
        longer = self.config.search.frontier_epochs
        models = {f"{c.id}-e{longer}" for c in self._wanted()} if longer else set()
        return (
            {c.run for c in self._wanted()}
            | {row["run"] for row in self.store.final_rows()}
            | models
        )

    def shorter(self) -> int:
        """Trials that are to be trained anew although there is a result of them at another number of epochs."""
        if self.config.get_recipe().continues:
            return 0
        ids = {run.rpartition("-e")[0] for run in self.store.finished()}
        return sum(c.id in ids for c in self._pending_trials())

    def _guilt(self, candidate: Candidate, losses: Any) -> str | None:
        """Give a trial that could not say why it failed its result; the reason. Not where it was asked to end, or is another driver's."""
        guilt = None if self.stopping.why else losses.own_failure(candidate)
        if guilt is None or not self.lease.held():
            return None
        with contextlib.suppress(OSError):  # then it is lost
            write_failure(candidate.spec, self.store.folder, guilt.reason, guilt.detail)
            return guilt.reason
        return None

    def _ended(self, candidate: Candidate) -> None:
        if candidate.run in self.trials:
            self.tally.add(candidate.run, self.store.summary(candidate.run))
            self._judge()

    def _judge(self) -> None:
        if verdict := self.tally.verdict:
            mend = "mend the reason and add --retry failed, or raise it"
            self.stopping.ask(
                f"{verdict}, more than run.stop_at_failed = {self.config.run.stop_at_failed:g} allows: {mend}"
            )

    def _trial_source(self) -> Any:
        from tinynet_search.cluster.tune import Fixed
        from tinynet_search.search.adaptive import Adaptive

        if self.plan["sampler"]["name"] in ADAPTIVE:
            return _Watched(
                Adaptive(self.plan, self.store, self.config.search.trials, self.epochs),
                self.publisher,
            )
        # Largest first, so that no long trial is left for last.
        return Fixed(sorted(self._pending_trials(), key=lambda c: (-c.network["macs"], c.run)))

    def _final_source(self, progress: Any) -> Any:
        from tinynet_search.cluster.tune import Fixed

        if self.formula is None:
            self._conclude()
        if self._pending_trials():
            return Fixed([])  # what follows from all of the results waits for all of them
        more = [*self.finals, *self.continued]
        progress.watch(more, self.store.summaries([c.run for c in more]))
        return Fixed(self._pending(more))

    def _conclude(self) -> None:
        """Frontier, formula and finals from the results there are."""
        if self.plan["sampler"]["name"] in ADAPTIVE:
            self.candidates = candidates_of(self.plan, self.store, self.epochs)
            self.publisher.watch(self.candidates)  # those of another driver too
        self.frontier = write_frontier(self.store, self.plan, self.candidates)
        self.formula = write_formula(self.store, self.plan, self.frontier, self._counts())
        waiting = len(self._pending_trials())
        if waiting:
            self.notes = (
                [f"final networks wait for {waiting} trials without a result"]
                if self.config.search.finals
                else []
            )
        elif self.formula.usable:
            budgets, rules = self.config.search.finals, self.config.search.compare
            self.finals, self.notes = write_finals(
                self.store, self.plan, self.formula, budgets, self.epochs, rules=rules
            )
            self.publisher.watch(self.finals)
        elif self.config.search.finals:
            self.notes = [f"no final networks: {self.formula.reason}"]
        if self.config.search.frontier_epochs is not None and not waiting:
            self.continued = continued(
                self.candidates, self.frontier, self.config.search.frontier_epochs
            )
            self.publisher.watch(self.continued)
        # Final networks may train for days: what led to them is to be seen meanwhile.
        self.publisher.conclude(
            self.frontier, self.formula.to_json(), self.store.read_json(FINALS) or []
        )

    def _counts(self) -> dict[str, int]:
        """What the formula follows from: trials by what became of them."""
        status = [
            result["status"]
            for result in self.store.summaries([c.run for c in self.candidates]).values()
        ]
        return {"planned": len(self.candidates)} | {
            name: status.count(name) for name in ("finished", "failed")
        }

    def _pending_trials(self) -> list[Candidate]:
        return self._pending(self._wanted())

    def _wanted(self) -> list[Candidate]:
        return self.candidates[: self.config.search.trials]

    def _pending(self, candidates: list[Candidate]) -> list[Candidate]:
        there = self.store.summaries([c.run for c in candidates])
        unique = {c.run: c for c in candidates if c.run not in there}
        return list(unique.values())

    def _adaptive_left(self) -> bool:
        return (
            self.plan["sampler"]["name"] in ADAPTIVE
            and len(self.candidates) < self.config.search.trials
        )

    def outcome(self, uri: str) -> SearchOutcome:
        assert self.formula is not None
        everything = {c.run: c for c in (*self.candidates, *self.finals, *self.continued)}
        results = self.store.summaries(everything)
        new = [run for run in results if run not in self.before]
        return SearchOutcome(
            self.store,
            self.plan,
            self.candidates,
            self.finals,
            self.frontier,
            self.formula,
            uri,
            at_once=self.at_once,
            new=len(new),
            lost=[]
            if self.stopping.why
            else self._pending([*self._wanted(), *self.finals, *self.continued]),
            lost_why=self.lost_why,
            stopped=self.stopping.why,
            continued=self.continued,
            notes=self.notes,
            seconds=self.seconds,
            trained=sum(self._trained(results[run]) for run in new),
        )

    def _trained(self, summary: Mapping[str, Any]) -> float:
        """Seconds that this driver's epochs of a trial took; the first ones may be an earlier driver's."""
        since = 1000 * self.started
        if summary["first_ts"] is None or summary["first_ts"] >= since:
            return summary["seconds"]
        result = self.store.result(summary["run"])
        return (
            sum(epoch["seconds"] for epoch in result["epochs"] if epoch["ts"] >= since)
            if result
            else 0.0
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
