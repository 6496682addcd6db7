"""Trains the pending candidates of a search in one Ray Tune run.

Called by the search driver.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from search_spaces import RequestError
from tinynet_search.plan.candidates import training_macs
from tinynet_search.search.conclusion import Conclusion, preload_sklearn
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
        request: Resources that the search requests; ``train`` replaces it with the final placement.
        at_once: Number of concurrent trials.
        seconds: Wall time of ``ray`` (start and stop) and ``trials``.
        lost_reasons: Why trials were lost whose processes died too often, by run name.
    """

    store: SearchStore
    plan: Plan
    request: "ClusterRequest"
    state: SearchState
    conclusion: Conclusion
    publisher: "Publisher"
    lease: Lease
    stopping: Stopping
    warn: Callable[[str], None]
    at_once: int = 1
    seconds: dict[str, float] = field(default_factory=dict)
    lost_reasons: dict[str, str] = field(default_factory=dict)

    def train(self) -> None:
        """Train all pending trials, then the final networks and the continued models."""
        from tinynet_search.cluster.connect import cluster
        from tinynet_search.cluster.placement import wait_for_placement

        started = time.perf_counter()
        with cluster(self.request.run, self.store.name):
            pending = [*self.state.pending_trials, *self.state.pending_later]
            data = self.plan.data
            macs = [training_macs(candidate, data.train, data.val) for candidate in pending]
            placement = wait_for_placement(self.request, macs, self.warn)
            self.request, self.at_once = placement.request, placement.at_once
            trials = time.perf_counter()
            self._run()
            self.stopping.reraise()
            self._require_lease()
            self.seconds["trials"] = time.perf_counter() - trials
        self.seconds["ray"] = time.perf_counter() - started - self.seconds["trials"]

    def _run(self) -> None:
        from tinynet_search.callbacks.crashes import CrashTally
        from tinynet_search.callbacks.metrics import SearchLabels, SearchMetrics
        from tinynet_search.callbacks.placement_groups import PlacementGroupCleaner
        from tinynet_search.callbacks.progress import Progress
        from tinynet_search.callbacks.watchdog import Watchdog
        from tinynet_search.cluster.tune import PhasedSource, StoppableSource, run_source

        progress = Progress(self.at_once)
        progress.watch(self.state.all_candidates, self.state.results)
        crashes = CrashTally(self.store, self.request.run.max_failures)
        phases = PhasedSource(
            [self._trial_source, lambda: self._final_source(progress)], idle=preload_sklearn
        )

        def ended(candidate: Candidate) -> None:
            self._ended(candidate, crashes, progress)

        def retry(candidate: Candidate) -> bool:
            early = crashes.should_repeat(candidate)
            if early:
                progress.expect(candidate.run, "waiting")
            return early

        directory = self.store.url.partition("?")[0]
        labels = SearchLabels(self.store.name, self.plan.owner, directory)
        metrics = SearchMetrics(labels, progress.rows, lambda: self.publisher.lag)
        callbacks = [
            progress,
            metrics,
            crashes,
            Watchdog(self.store.url, self.request.run.trial_timeout),
            PlacementGroupCleaner(),
        ]
        with progress.shown(), self.stopping.graceful(self.lease.request_stop):
            run_source(
                self.request,
                self.store.url,
                StoppableSource(phases, self.stopping, ended, retry),
                max_trials=self._max_trials,
                at_once=self.at_once,
                callbacks=callbacks,
                stop=self.lease.stop_file,
            )
        metrics.update()
        self.lost_reasons = {
            run: row.reason for run, row in progress.rows.items() if row.state == "lost"
        }

    @property
    def _max_trials(self) -> int:
        """An upper bound: each trial and its longer training, two networks per budget, plus one."""
        return self.state.trials * 2 + 2 * self.conclusion.budgets + 1

    def stop_if_too_many_failed(self) -> None:
        """Stop the search if the share of failed trials exceeds ``run.stop_at_failed``."""
        if stop_reason := self.state.stop_reason:
            limit = f"run.stop_at_failed = {self.state.stop_at_failed:g}"
            fix = "fix the cause and pass --retry failed, or raise the limit"
            self.stopping.request_stop(f"{stop_reason}, more than {limit} allows: {fix}")

    def _ended(self, candidate: Candidate, crashes: "CrashTally", progress: "Progress") -> None:
        if reason := self._own_failure(candidate, crashes):
            progress.expect(candidate.run, "failed", reason)
        # The results of final and continued models are read after all of them have ended.
        if self.state.is_trial(candidate.run):
            self.state.ended(candidate.run, self.store.summary(candidate.run))
            self.stop_if_too_many_failed()

    def _own_failure(self, candidate: Candidate, crashes: "CrashTally") -> str | None:
        """Write a failed result for a trial that could not record its own failure.

        Nothing is written if the search is stopping or another driver holds the lease.

        Returns:
            The failure reason, None if no result was written.
        """
        failure = None if self.stopping.reason else crashes.own_failure(candidate)
        if failure is None or not self.lease.held():
            return None
        with contextlib.suppress(OSError):  # the trial then counts as lost
            write_failure(candidate.spec, self.store.folder, failure.reason, failure.detail)
            return failure.reason
        return None

    def _require_lease(self) -> None:
        """Raise RequestError if another driver has taken over; it then does the remaining work."""
        if not self.lease.held():
            holder = read_lease(self.store.folder)
            by = f" by {holder.described}" if holder else ""
            raise RequestError(
                f"search {self.store.url} has been taken over{by} and continues there"
            )

    def _trial_source(self) -> "Source":
        from tinynet_search.cluster.tune import FixedSource
        from tinynet_search.search.adaptive import AdaptiveSource

        if self.state.adaptive:
            return AdaptiveSource(self.plan, self.store, self.state, self.publisher.watch)
        # Largest first, so that the longest trials do not run last.
        return FixedSource(
            sorted(self.state.pending_trials, key=lambda c: (-c.network.macs, c.run))
        )

    def _final_source(self, progress: "Progress") -> "Source":
        from tinynet_search.cluster.tune import FixedSource

        if self.conclusion.formula is None:
            self.conclusion.conclude()
        if self.state.pending_trials:
            return FixedSource([])  # final networks need the results of all trials
        progress.watch(self.state.later, self.state.results)
        return FixedSource(self.state.pending_later)
