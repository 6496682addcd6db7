"""The run of a search on Tune: what is pending, trained on a cluster until it has ended or the search is stopped."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from search_spaces import RequestError
from tinynet_search.plan.candidates import training_macs
from tinynet_search.search.conclusion import Conclusion, prepare
from tinynet_search.search.state import SearchState
from tinynet_search.signals import Stopping
from tinynet_search.store.directory import Candidate, SearchStore
from tinynet_search.store.lease import Lease, read_lease
from tinynet_search.store.schema import Plan
from trainables.trial import write_failure

if TYPE_CHECKING:
    from tinynet_search.callbacks.crashes import CrashTally
    from tinynet_search.callbacks.progress import Progress
    from tinynet_search.cluster.placement import ClusterRequest
    from tinynet_search.cluster.tune import Source
    from tinynet_search.tracking.publisher import Publisher


@dataclass
class TuneRun:
    """One Tune run of a search.

    Attributes:
        request: what the search asks of the cluster; after ``train`` as it was decided there.
        at_once: trials side by side; seconds: wall time of ``ray`` (start and stop) and ``trials``.
        lost_why: of trials whose processes were lost too often, by run name.
    """

    store: SearchStore
    plan: Plan
    request: "ClusterRequest"
    state: SearchState
    conclusion: Conclusion
    publisher: "Publisher"
    lease: Lease
    stopping: Stopping
    say: Callable[[str], None]
    at_once: int = 1
    seconds: dict[str, float] = field(default_factory=dict)
    lost_why: dict[str, str] = field(default_factory=dict)

    def train(self) -> None:
        """Everything pending in one Tune run: the trials; once they have all ended the finals that follow; then what is continued."""
        from tinynet_search.cluster.connect import cluster
        from tinynet_search.cluster.placement import wait_for_placement

        started = time.perf_counter()
        with cluster(self.request.run):
            pending = [*self.state.pending_trials, *self.state.pending_later]
            data = self.plan.data
            macs = [training_macs(candidate, data.train, data.val) for candidate in pending]
            placement = wait_for_placement(self.request, macs, self.say)
            self.request, self.at_once = placement.request, placement.at_once
            trials = time.perf_counter()
            self._run()
            self.stopping.deliver()
            self._require_lease()
            self.seconds["trials"] = time.perf_counter() - trials
        self.seconds["ray"] = time.perf_counter() - started - self.seconds["trials"]

    def _run(self) -> None:
        from tinynet_search.callbacks.crashes import CrashTally
        from tinynet_search.callbacks.metrics import SearchMetrics
        from tinynet_search.callbacks.placement_groups import PlacementGroupCleaner
        from tinynet_search.callbacks.progress import Progress
        from tinynet_search.callbacks.watchdog import Watchdog
        from tinynet_search.cluster.tune import Guarded, Phases, run_source

        progress = Progress(self.at_once)
        progress.watch(self.state.everything, self.state.results)
        crashes = CrashTally(self.store, self.request.run.max_failures)
        phases = Phases([self._trial_source, lambda: self._final_source(progress)], idle=prepare)

        def ended(candidate: Candidate) -> None:
            self._ended(candidate, crashes, progress)

        def again(candidate: Candidate) -> bool:
            early = crashes.given_up_early(candidate)
            if early:
                progress.expect(candidate.run, "waiting")
            return early

        metrics = SearchMetrics(self.store.name, progress.rows, lambda: self.publisher.lag)
        callbacks = [
            progress,
            metrics,
            crashes,
            Watchdog(self.store.url, self.request.run.trial_timeout),
            PlacementGroupCleaner(),
        ]
        with progress.shown(), self.stopping.gently(self.lease.ask_to_stop):
            run_source(
                self.request,
                self.store.url,
                Guarded(phases, self.stopping, ended, again),
                most=self._most_trials,
                at_once=self.at_once,
                callbacks=callbacks,
                stop=self.lease.stop_file,
            )
        metrics.look()
        self.lost_why = {run: row.why for run, row in progress.rows.items() if row.state == "lost"}

    @property
    def _most_trials(self) -> int:
        """An upper bound: every trial and its longer training, two networks a budget at least, and one more."""
        return self.state.trials * 2 + 2 * self.conclusion.budgets + 1

    def judge(self) -> None:
        """Have the search end where too many of its trials have failed."""
        if verdict := self.state.verdict:
            mend = "mend the reason and add --retry failed, or raise it"
            self.stopping.ask(
                f"{verdict}, more than run.stop_at_failed = {self.state.stop_at_failed:g} allows: {mend}"
            )

    def _ended(self, candidate: Candidate, crashes: "CrashTally", progress: "Progress") -> None:
        if reason := self._own_failure(candidate, crashes):
            progress.expect(candidate.run, "failed", reason)
        # Results of what is trained later are read when all of it has ended.
        if self.state.is_trial(candidate.run):
            self.state.ended(candidate.run, self.store.summary(candidate.run))
            self.judge()

    def _own_failure(self, candidate: Candidate, crashes: "CrashTally") -> str | None:
        """Give a trial that could not say why it failed its result; the reason. Not where it was asked to end, or is another driver's."""
        failure = None if self.stopping.why else crashes.own_failure(candidate)
        if failure is None or not self.lease.held():
            return None
        with contextlib.suppress(OSError):  # then it is lost
            write_failure(candidate.spec, self.store.folder, failure.reason, failure.detail)
            return failure.reason
        return None

    def _require_lease(self) -> None:
        """Raises RequestError where another driver has taken over: what follows is its."""
        if not self.lease.held():
            holder = read_lease(self.store.folder)
            by = f" by {holder.described}" if holder else ""
            raise RequestError(f"search {self.store.url} has been taken over{by}: it goes on there")

    def _trial_source(self) -> "Source":
        from tinynet_search.cluster.tune import Fixed
        from tinynet_search.search.adaptive import Adaptive

        if self.state.adaptive:
            return Adaptive(self.plan, self.store, self.state, self.publisher.watch)
        # Largest first, so that no long trial is left for last.
        return Fixed(sorted(self.state.pending_trials, key=lambda c: (-c.network.macs, c.run)))

    def _final_source(self, progress: "Progress") -> "Source":
        from tinynet_search.cluster.tune import Fixed

        if self.conclusion.formula is None:
            self.conclusion.conclude()
        if self.state.pending_trials:
            return Fixed([])  # what follows from all of the results waits for all of them
        progress.watch(self.state.later, self.state.results)
        return Fixed(self.state.pending_later)
