"""Trials whose processes die again and again: by themselves, or with their nodes.

Called by the driver of a search. A process that the kernel kills for its memory, or that crashes in an extension, leaves
no reason and would do it again. It is told from a fault of the cluster by two facts: its node lives, and it comes no
further from one time to the next.
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
# How often a trial is given to Tune again that Tune gave up before it began.
RETURNS = 2


class OwnFailure(NamedTuple):
    """Why a trial has failed by itself, though its process left no reason."""

    reason: str
    detail: str


class _Try(NamedTuple):
    """One try of a trial: whether it began, and the epochs that were done at its end."""

    began: bool
    epochs: int


class _FailedTry(NamedTuple):
    """A try that failed, with Ray's text about it."""

    began: bool
    epochs: int
    text: str


@dataclass
class _Tries:
    """The tries of one trial of Tune's: whether the last one began, and those before it."""

    trial: Any
    began: bool = False
    before: list[_Try] = field(default_factory=list)

    @property
    def last(self) -> _Try:
        return _Try(self.began, int((self.trial.last_result or {}).get("epochs_done", 0)))


class CrashTally(Callback):
    """Tune's callback that counts how often trials are started again, and after what.

    Args:
        max_failures: how often Tune does so, ``run.max_failures``.
    """

    def __init__(self, store: SearchStore, max_failures: int) -> None:
        self._store, self._max_failures = store, max_failures
        self._tries: dict[str, _Tries] = {}
        self._returned: Counter[str] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; there is nothing here to save."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._of(trial).began = True

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        tries = self._of(trial)
        tries.before.append(tries.last)
        tries.began = False

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """By now it was judged; Tune's trials are large, and it drops them after each wave."""
        self._tries.pop(trial.config["run"], None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tries.pop(trial.config["run"], None)

    def _of(self, trial: Any) -> _Tries:
        """The tries of this trial of Tune's, which may be another one for the same run."""
        run = trial.config["run"]
        if run not in self._tries or self._tries[run].trial is not trial:
            self._tries[run] = _Tries(trial)
        return self._tries[run]

    def given_up_early(self, candidate: Candidate) -> bool:
        """Whether a trial that has ended without a result is to be given once more.

        Tune counts the death of a process that it keeps for the next trial twice, and gives up that trial, which never began.
        """
        failed = self._failed_tries(candidate.run)
        begun = sum(each.began for each in failed)
        if (
            not failed
            or begun == len(failed)
            or begun > self._max_failures
            or self._returned[candidate.run] >= RETURNS
        ):
            return False
        self._returned[candidate.run] += 1
        return not self._store.has_result(candidate.run)

    def own_failure(self, candidate: Candidate) -> OwnFailure | None:
        """Of a trial that Tune gave up: how it failed by itself, None where it did not.

        It did where each of its processes died, its node lived, and no epoch was new.
        """
        failed = self._failed_tries(candidate.run)
        if len(failed) <= self._max_failures or self._store.has_result(candidate.run):
            return None
        if not all(each.began and process_died_on_live_node(each.text) for each in failed):
            return None
        if failed[-1].epochs > failed[0].epochs:
            return None
        text, count = failed[-1].text, len(failed)
        times = "once" if count == 1 else f"{count} times without a new epoch in between"
        return OwnFailure(
            MEMORY if killed_for_memory(text) else DIED,
            f"its process died {times}, and its node lives: {death_detail(text)}",
        )

    def _failed_tries(self, run: str) -> list[_FailedTry]:
        """The tries of a trial that Tune has given up; empty where the last one did not fail."""
        tries = self._tries.get(run)
        if tries is None:
            return []
        texts = failure_texts(tries.trial)
        if len(texts) != len(tries.before) + 1:
            return []
        every_try = [*tries.before, tries.last]
        return [_FailedTry(*each, text) for each, text in zip(every_try, texts, strict=True)]
