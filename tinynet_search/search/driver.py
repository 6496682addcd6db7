"""The search driver: plan, trials on Tune, frontier, formula and final networks.

Called by ``tinynet search``. Running the same search again skips trials with a result, resumes
trials with a checkpoint and starts the rest. All state is in the search directory, so the driver
can be killed at any point and a new driver continues from there.
"""

import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinynet_search.commands import sync_command
from tinynet_search.config import Config, PlanInputs
from tinynet_search.errors import require
from tinynet_search.plan.candidates import grow
from tinynet_search.plan.plan import load_or_create_plan, packing_warning
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
    from tinynet_search.tracking.registered_formula import Registration

# Seconds that an interrupted search waits for its publisher.
PUBLISH_TIMEOUT = 15.0


def print_message(message: str) -> None:
    """Print a message to stderr; stdout is reserved for the requested output."""
    print(message, file=sys.stderr, flush=True)


def run_search(
    config: Config,
    *,
    tracking: str | None = None,
    retry: Collection[str] = (),
    warn: Callable[[str], None] = print_message,
) -> SearchOutcome:
    """Run a search to its end, or resume it.

    On the first Ctrl-C or SIGTERM, trainings commit a checkpoint; the second stops immediately.

    Args:
        config: Returned by ``load_config``.
        tracking: MLflow URI; overrides MLFLOW_TRACKING_URI and the configuration.
        retry: Failure reasons of the failed trials to train again; ``failed`` matches all.
        warn: Called with one line per warning that does not stop the search.

    Raises:
        RequestError: The configuration contradicts the plan or cannot run here, or another driver
            runs this search. The search directory keeps all results.
        KeyboardInterrupt: The search was interrupted. It can be resumed.
    """
    require("ray", "torch", "timm", "sklearn", "pymoo")
    from tinynet_search.cluster.placement import ClusterRequest
    from tinynet_search.mlflow_client.connection import resolve_uri
    from tinynet_search.tracking.registered_formula import Registration

    started = time.perf_counter()
    inputs = config.resolve()
    store = SearchStore(inputs.url)
    uri = resolve_uri(tracking, config.tracking.uri, config.storage.path)
    plan = load_or_create_plan(store, inputs)
    with stoppable(warn) as stopping, Lease(store.folder, f"search {store.url}", "search") as lease:
        state = opened_state(store, plan, inputs, config.run.stop_at_failed)
        retried = set_aside(store, retry, retryable(store, inputs, state)) if retry else []
        state.forget(retried)
        _warn_before_start(store, plan, state, len(retried), warn)
        driver = _Driver(
            store, plan, inputs, ClusterRequest.of(config, inputs), state, lease, stopping
        )
        registration = Registration(config.tracking.model, config.tracking.promote)
        outcome = driver.run(uri, registration, warn)
    outcome.seconds["total"] = time.perf_counter() - started
    return outcome


def opened_state(
    store: SearchStore, plan: Plan, inputs: PlanInputs, stop_at_failed: float
) -> SearchState:
    """Load the state of a search directory: the candidates and their results.

    Missing candidates are drawn, up to the configured number of trials.
    """
    search, epochs = inputs.search, inputs.recipe.epochs
    state = SearchState(
        trials=search.trials,
        epochs=epochs,
        adaptive=plan.sampler.adaptive,
        stop_at_failed=stop_at_failed,
        candidates=grow(plan, store, search.trials, epochs),
        finished_before=frozenset(store.finished()),
    )
    state.read(store.summaries(state.unread))
    return state


def retryable(
    store: SearchStore, inputs: PlanInputs, state: SearchState
) -> dict[RunName, ResultSummary]:
    """Results of all runs that this search can train, including final and longer trainings."""
    finals = [row.run for row in store.final_rows()]
    runs = sorted(state.trainable(finals, inputs.search.frontier_epochs))
    state.read(store.summaries(run for run in runs if run not in state.results))
    return {run: state.results[run] for run in runs if run in state.results}


def _warn_before_start(
    store: SearchStore,
    plan: Plan,
    state: SearchState,
    retried: int,
    warn: Callable[[str], None],
) -> None:
    if retried:
        warn(
            f"failed trials to be trained again: {retried}; "
            f"their previous results are in {store.url_of(RETRIED)}"
        )
    shorter = 0 if plan.recipe.extendable else state.trained_elsewhere(state.finished_before)
    if shorter:
        warn(
            f"trials with a result for a different number of epochs: {shorter}; they start from "
            f"scratch for {state.epochs} epochs because of the cosine schedule"
        )
    if warning := packing_warning(
        plan.data.largest_pixels, (c.network.resolution for c in state.candidates)
    ):
        warn(warning)


@dataclass
class _Driver:
    """One call of ``run_search``: holds the parts of a search and runs its steps in order."""

    store: SearchStore
    plan: Plan
    inputs: PlanInputs
    request: "ClusterRequest"
    state: SearchState
    lease: Lease
    stopping: Stopping

    def run(
        self, uri: str, registration: "Registration", warn: Callable[[str], None]
    ) -> SearchOutcome:
        """Run the search with an MLflow publisher; close the publisher even if the search fails."""
        from tinynet_search.mlflow_client.connection import address
        from tinynet_search.tracking.publisher import Publisher

        stopping = self.stopping
        publisher = Publisher(self.store, self.plan, uri, warn=warn, registration=registration)
        publisher.only_while(self.lease.held)
        publisher.start()
        status = "KILLED"
        try:
            outcome = self._search(publisher, address(uri), warn)
            status = "KILLED" if outcome.stopped or outcome.lost else "FINISHED"
        finally:
            # An interrupted search does not wait until all results are sent to MLflow. The next run
            # or tinynet sync sends the rest.
            if stopping.signal and not stopping.forced:
                warn(
                    f"checkpoints are committed; sending to MLflow for up to "
                    f"{PUBLISH_TIMEOUT:.0f} s (interrupt again to stop immediately)"
                )
            timeout = PUBLISH_TIMEOUT if stopping.signal else None
            sent = publisher.close(timeout=0.0 if stopping.forced else timeout, status=status)
        if not sent:
            outcome.notes.append(
                f"MLflow at {address(uri)} is not up to date: "
                "to send the rest, run "
                f"{sync_command(self.store.url, uri, self.plan.space.name)}"
            )
        outcome.link = publisher.link
        outcome.seconds["mlflow"] = publisher.busy_seconds
        return outcome

    def _search(
        self, publisher: "Publisher", tracking: str, warn: Callable[[str], None]
    ) -> SearchOutcome:
        """Train the trials and the final networks, and compute the outcome."""
        state, stopping, started = self.state, self.stopping, time.time()
        conclusion = Conclusion(self.store, self.plan, self.inputs.search, state, publisher)
        tune_run = TuneRun(
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
        self.lease.when_lost(
            lambda: stopping.request_stop("another driver has taken over this search")
        )
        publisher.watch(state.candidates)
        trials_left = state.trials_left
        if trials_left:
            tune_run.stop_if_too_many_failed()
        else:
            conclusion.conclude()
        if not stopping.reason and (trials_left or state.pending_later):
            tune_run.train()
        if conclusion.formula is None:
            conclusion.conclude()
        else:
            # A worker process may have written a result after Tune gave up on its trial.
            state.read(self.store.summaries(state.unread))
            if state.continued:
                conclusion.write_frontier()
            conclusion.publish()
        return self._outcome(conclusion, tune_run, tracking, started)

    def _outcome(
        self, conclusion: Conclusion, tune_run: TuneRun, tracking: str, started: float
    ) -> SearchOutcome:
        assert conclusion.formula is not None
        state, stopped = self.state, self.stopping.reason
        lost = [] if stopped else [*state.pending_trials, *state.pending_later]
        new = state.new
        return SearchOutcome(
            store=self.store,
            plan=self.plan,
            candidates=state.candidates,
            finals=state.finals,
            results={
                c.run: state.results[c.run] for c in state.all_candidates if c.run in state.results
            },
            frontier=conclusion.frontier,
            final_rows=conclusion.final_rows,
            formula=conclusion.formula,
            tracking=tracking,
            at_once=tune_run.at_once,
            new=len(new),
            lost=list({c.run: c for c in lost}.values()),
            lost_reasons=tune_run.lost_reasons,
            stopped=stopped,
            continued=state.continued,
            notes=conclusion.notes,
            seconds=tune_run.seconds,
            trained=sum(self._trained(result, started) for result in new),
        )

    def _trained(self, summary: ResultSummary, started: float) -> float:
        """Seconds that this driver spent on a trial, without the epochs of earlier drivers."""
        since = 1000 * started
        if summary.first_ts is None or summary.first_ts >= since:
            return summary.seconds
        result = self.store.result(summary.run)
        epochs = result.epochs if result else ()
        return sum(epoch.seconds for epoch in epochs if epoch.ts >= since)
