"""The driver: plan, Tune, results, frontier, formula, final networks; on the search directory, and idempotent.

Running the same search again skips what has a result, resumes what has a checkpoint and starts the rest. Nothing
here is the truth: the driver can die anywhere and the next one finds all there is in the search directory.
"""

import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinynet_search.config import Config, PlanInputs
from tinynet_search.errors import require
from tinynet_search.plan.candidates import grow
from tinynet_search.plan.plan import agreed_plan, too_large
from tinynet_search.search.conclusion import Conclusion
from tinynet_search.search.outcome import SearchOutcome
from tinynet_search.search.retry import RETRIED, set_aside
from tinynet_search.search.state import SearchState
from tinynet_search.search.tune_run import TuneRun
from tinynet_search.signals import Stopping, stoppable
from tinynet_search.store.directory import SearchStore
from tinynet_search.store.lease import Lease
from tinynet_search.store.schema import Plan
from trainables.result import ResultSummary
from trainables.run_name import RunName

if TYPE_CHECKING:
    from tinynet_search.cluster.placement import ClusterRequest
    from tinynet_search.tracking.publisher import Publisher

# Seconds that the publisher of an interrupted search gets.
LAST_SECONDS = 15.0


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
    from tinynet_search.cluster.placement import ClusterRequest
    from tinynet_search.mlflow_client.connection import resolve_uri

    started = time.perf_counter()
    inputs = config.resolve()
    store = SearchStore(inputs.url)
    uri = resolve_uri(tracking, config.tracking.uri, config.storage.path)
    plan = agreed_plan(store, inputs)
    with stoppable(warn) as stopping, Lease(store.folder, f"search {store.url}", "search") as lease:
        state = opened_state(store, plan, inputs, config.run.stop_at_failed)
        again = set_aside(store, retry, retryable(store, inputs, state)) if retry else []
        state.forget(again)
        _warn_of(store, plan, state, len(again), warn)
        driver = _Driver(
            store, plan, inputs, ClusterRequest.of(config, inputs), state, lease, stopping
        )
        outcome = driver.run(uri, warn)
    outcome.seconds["total"] = time.perf_counter() - started
    return outcome


def opened_state(
    store: SearchStore, plan: Plan, inputs: PlanInputs, stop_at_failed: float
) -> SearchState:
    """The state that a search directory is in: candidates, drawn up to the number that is wanted, and their results."""
    search, epochs = inputs.search, inputs.recipe.epochs
    state = SearchState(
        trials=search.trials,
        epochs=epochs,
        adaptive=plan.sampler.adaptive,
        stop_at_failed=stop_at_failed,
        candidates=grow(plan, store, search.trials, epochs),
        before=frozenset(store.finished()),
    )
    state.read(store.summaries(state.unread))
    return state


def retryable(
    store: SearchStore, inputs: PlanInputs, state: SearchState
) -> dict[RunName, ResultSummary]:
    """Results of all that this search can train, final jobs that are written down and longer trainings among it."""
    finals = [row.run for row in store.final_rows()]
    runs = sorted(state.trainable(finals, inputs.search.frontier_epochs))
    state.read(store.summaries(run for run in runs if run not in state.results))
    return {run: state.results[run] for run in runs if run in state.results}


def _warn_of(
    store: SearchStore,
    plan: Plan,
    state: SearchState,
    again: int,
    warn: Callable[[str], None],
) -> None:
    """What is worth knowing before the search begins."""
    if again:
        warn(
            f"failed trials that are trained again: {again}; their results so far are in {store.at(RETRIED)}"
        )
    shorter = 0 if plan.recipe.continues else state.trained_elsewhere(state.before)
    if shorter:
        warn(
            f"trials that have a result for other epochs, and start anew for {state.epochs}: {shorter}, by the cosine schedule"
        )
    if warning := too_large(
        plan.data.largest_pixels, (c.network.resolution for c in state.candidates)
    ):
        warn(warning)


@dataclass
class _Driver:
    """One call of ``run_search``: the parts of a search, and what happens in which order."""

    store: SearchStore
    plan: Plan
    inputs: PlanInputs
    request: "ClusterRequest"
    state: SearchState
    lease: Lease
    stopping: Stopping

    def run(self, uri: str, warn: Callable[[str], None]) -> SearchOutcome:
        """Search with a publisher beside it, whatever becomes of either."""
        from tinynet_search.mlflow_client.connection import address
        from tinynet_search.tracking.publisher import Publisher

        stopping = self.stopping
        publisher = Publisher(self.store, self.plan, uri, warn=warn)
        publisher.only_while(self.lease.held)
        publisher.start()
        status = "KILLED"
        try:
            outcome = self._search(publisher, address(uri), warn)
            status = "KILLED" if outcome.stopped or outcome.lost else "FINISHED"
        finally:
            # An interrupted search does not wait for all that is to be sent: the next run, or tinynet sync, goes on with it.
            if stopping.signal and not stopping.insisted:
                warn(
                    f"checkpoints are committed; MLflow gets {LAST_SECONDS:.0f} s at most (again to stop at once)"
                )
            timeout = LAST_SECONDS if stopping.signal else None
            sent = publisher.close(timeout=0.0 if stopping.insisted else timeout, status=status)
        if not sent:
            outcome.notes.append(
                f"MLflow at {address(uri)} has not everything yet: tinynet sync --search {self.store.name} catches up"
            )
        outcome.link = publisher.link
        outcome.seconds["mlflow"] = publisher.busy_seconds
        return outcome

    def _search(
        self, publisher: "Publisher", tracking: str, warn: Callable[[str], None]
    ) -> SearchOutcome:
        """Trials, finals and what follows from them."""
        state, stopping, started = self.state, self.stopping, time.time()
        conclusion = Conclusion(self.store, self.plan, self.inputs.search, state, publisher)
        on_tune = TuneRun(
            self.store,
            self.plan,
            self.request,
            state,
            conclusion,
            publisher,
            self.lease,
            stopping,
            warn,
        )
        self.lease.when_lost(lambda: stopping.ask("another driver has taken this search over"))
        publisher.watch(state.candidates)
        trials_left = state.trials_left
        if trials_left:
            on_tune.judge()
        else:
            conclusion.conclude()
        if not stopping.why and (trials_left or state.pending_later):
            on_tune.train()
        if conclusion.formula is None:
            conclusion.conclude()
        else:
            # A process may have written a result after Tune gave its trial up.
            state.read(self.store.summaries(state.unread))
            if state.continued:
                conclusion.write_frontier()
            conclusion.publish()
        return self._outcome(conclusion, on_tune, tracking, started)

    def _outcome(
        self, conclusion: Conclusion, on_tune: TuneRun, tracking: str, started: float
    ) -> SearchOutcome:
        assert conclusion.formula is not None
        state, stopped = self.state, self.stopping.why
        lost = [] if stopped else [*state.pending_trials, *state.pending_later]
        new = state.new
        return SearchOutcome(
            store=self.store,
            plan=self.plan,
            candidates=state.candidates,
            finals=state.finals,
            results={
                c.run: state.results[c.run] for c in state.everything if c.run in state.results
            },
            frontier=conclusion.frontier,
            final_rows=conclusion.final_rows,
            formula=conclusion.formula,
            tracking=tracking,
            at_once=on_tune.at_once,
            new=len(new),
            lost=list({c.run: c for c in lost}.values()),
            lost_why=on_tune.lost_why,
            stopped=stopped,
            continued=state.continued,
            notes=conclusion.notes,
            seconds=on_tune.seconds,
            trained=sum(self._trained(result, started) for result in new),
        )

    def _trained(self, summary: ResultSummary, started: float) -> float:
        """Seconds that this driver's epochs of a trial took; the first ones may be an earlier driver's."""
        since = 1000 * started
        if summary.first_ts is None or summary.first_ts >= since:
            return summary.seconds
        result = self.store.result(summary.run)
        epochs = result.epochs if result else ()
        return sum(epoch.seconds for epoch in epochs if epoch.ts >= since)
