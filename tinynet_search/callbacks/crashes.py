"""Trials whose processes die again and again: by themselves, or with their nodes.

A process that the kernel kills for its memory, or that crashes in somebody's extension, says nothing of why, and would do
it again. What tells it from a cluster's faults is that its node lives, and that it comes no further from one time to the next.
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
# Times that a trial is given again which Tune gave up before it began.
RETURNS = 2


class Guilt(NamedTuple):
    """Why a trial has failed, though it could not say so."""

    reason: str
    detail: str


@dataclass
class _Tries:
    """Of one trial of Tune's: whether the last one began, and of those that were started again whether they had, and how far they were."""

    trial: Any
    began: bool = False
    before: list[tuple[bool, int]] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        return int((self.trial.last_result or {}).get("epochs_done", 0))


class Losses(Callback):
    """Tune's callback that follows how often trials are started again, and after what.

    Args:
        most: times that Tune does so, ``run.max_failures``.
    """

    def __init__(self, store: SearchStore, most: int) -> None:
        self._store, self._most = store, most
        self._tries: dict[str, _Tries] = {}
        self._returned: Counter[str] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; there is nothing here to save."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._of(trial).began = True

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        tries = self._of(trial)
        tries.before.append((tries.began, tries.epochs))
        tries.began = False

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """By now it was judged; Tune's trials are large, and it lets go of them after each wave."""
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
        found = self._failures(candidate.run)
        begun = sum(began for began, _, _ in found)
        if (
            not found
            or begun == len(found)
            or begun > self._most
            or self._returned[candidate.run] >= RETURNS
        ):
            return False
        self._returned[candidate.run] += 1
        return self._store.summary(candidate.run) is None

    def guilty(self, candidate: Candidate) -> Guilt | None:
        """Of what a trial that was given up has failed by itself: every process of its died, its node lived, and no epoch was new."""
        found = self._failures(candidate.run)
        if len(found) <= self._most or self._store.summary(candidate.run) is not None:
            return None
        epochs = [epochs for _, epochs, _ in found]
        if (
            not all(began and process_died_on_live_node(said) for began, _, said in found)
            or epochs[-1] > epochs[0]
        ):
            return None
        said = found[-1][2]
        times = "once" if len(found) == 1 else f"{len(found)} times without a new epoch in between"
        return Guilt(
            MEMORY if killed_for_memory(said) else DIED,
            f"its process died {times}, and its node lives: {death_detail(said)}",
        )

    def _failures(self, run: str) -> list[tuple[bool, int, str]]:
        """Of a trial that Tune has given up: whether each try had begun, its epochs, and what Ray said; empty where it ended otherwise."""
        tries = self._tries.get(run)
        if tries is None:
            return []
        said = failure_texts(tries.trial)
        if len(said) != len(tries.before) + 1:
            return []  # its last try did not fail
        return [
            (*how, words)
            for how, words in zip([*tries.before, (tries.began, tries.epochs)], said, strict=True)
        ]
