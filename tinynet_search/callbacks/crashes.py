"""Detects trials whose own processes crash repeatedly, as opposed to trials on lost nodes.

Called by the driver of a search. A process that the kernel kills because of its memory, or that
crashes in an extension, leaves no reason and would crash again. Two facts distinguish it from a
fault of the cluster: its node is alive, and it completes no further epoch from one attempt to the
next.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ray.tune import Callback

from tinynet_search.cluster.ray_internals import (
    death_detail,
    failure_texts,
    killed_for_memory,
    process_died_on_live_node,
)
from tinynet_search.store.directory import Candidate, SearchStore

DIED, MEMORY = "died", "out of memory"
# Maximum number of repeats of a trial that Tune abandoned before it started.
MAX_REPEATS = 2


class OwnFailure(NamedTuple):
    """Why a trial failed by itself, derived from how its processes died."""

    reason: str
    detail: str


class _Attempt(NamedTuple):
    """One attempt of a trial: whether it started, and the epochs that were done at its end."""

    started: bool
    epochs: int


class _FailedAttempt(NamedTuple):
    """A failed attempt, with Ray's error message."""

    started: bool
    epochs: int
    text: str


@dataclass
class _Attempts:
    """The attempts of one Tune trial: whether the last one started, and the earlier ones."""

    trial: Any
    started: bool = False
    earlier: list[_Attempt] = field(default_factory=list)

    @property
    def last(self) -> _Attempt:
        return _Attempt(self.started, int((self.trial.last_result or {}).get("epochs_done", 0)))


class CrashTally(Callback):
    """Tune callback that counts the restarts of trials, and records their causes.

    Args:
        store: the search directory.
        max_failures: the number of restarts per trial, ``run.max_failures``.
    """

    def __init__(self, store: SearchStore, max_failures: int) -> None:
        self._store, self._max_failures = store, max_failures
        self._attempts: dict[str, _Attempts] = {}
        self._repeats: Counter[str] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; this one has no state to save."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._of(trial).started = True

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        attempts = self._of(trial)
        attempts.earlier.append(attempts.last)
        attempts.started = False

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Drop the attempts of the trial, which are no longer needed: Tune trials are large.

        Tune itself keeps them until the end of each run.
        """
        self._attempts.pop(trial.config["run"], None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._attempts.pop(trial.config["run"], None)

    def _of(self, trial: Any) -> _Attempts:
        """The attempts of this Tune trial; reset if an earlier Tune trial had the same run."""
        run = trial.config["run"]
        if run not in self._attempts or self._attempts[run].trial is not trial:
            self._attempts[run] = _Attempts(trial)
        return self._attempts[run]

    def should_repeat(self, candidate: Candidate) -> bool:
        """Whether a trial that has ended without a result should run again.

        Tune counts the death of a process that it keeps for the next trial twice, and abandons
        that trial although it never started.
        """
        failed = self._failed_attempts(candidate.run)
        started = sum(attempt.started for attempt in failed)
        if (
            not failed
            or started == len(failed)
            or started > self._max_failures
            or self._repeats[candidate.run] >= MAX_REPEATS
        ):
            return False
        self._repeats[candidate.run] += 1
        return not self._store.has_result(candidate.run)

    def own_failure(self, candidate: Candidate) -> OwnFailure | None:
        """The reason why a trial that Tune abandoned failed by itself, None if it did not.

        A trial failed by itself if its process died in each attempt while the node was alive, and
        no attempt completed a further epoch.
        """
        failed = self._failed_attempts(candidate.run)
        if len(failed) <= self._max_failures or self._store.has_result(candidate.run):
            return None
        if not all(
            attempt.started and process_died_on_live_node(attempt.text) for attempt in failed
        ):
            return None
        if failed[-1].epochs > failed[0].epochs:
            return None
        text, count = failed[-1].text, len(failed)
        times = "once" if count == 1 else f"{count} times without a new epoch in between"
        return OwnFailure(
            MEMORY if killed_for_memory(text) else DIED,
            f"the process died {times} while its node was alive: {death_detail(text)}",
        )

    def _failed_attempts(self, run: str) -> list[_FailedAttempt]:
        """All attempts of a trial that Tune has abandoned; empty if the last one did not fail."""
        attempts = self._attempts.get(run)
        if attempts is None:
            return []
        texts = failure_texts(attempts.trial)
        if len(texts) != len(attempts.earlier) + 1:
            return []
        pairs = zip([*attempts.earlier, attempts.last], texts, strict=True)
        return [_FailedAttempt(*attempt, text) for attempt, text in pairs]
