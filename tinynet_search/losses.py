"""Trials whose processes die again and again: by themselves, or with their nodes.

A process that the kernel kills for its memory, or that crashes in somebody's extension, says nothing of why, and would do
it again. What tells it from a cluster's faults is that its node lives, and that it comes no further from one time to the next.
"""

import contextlib
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ray.tune import Callback

from tinynet_search.errors import one_line
from tinynet_search.store import Candidate, SearchStore
from trainables.trial import write_failure

DIED, MEMORY = "died", "out of memory"
# As Ray says it of a process, of one that it killed itself for the node's memory, and of a node.
_PROCESS, _FULL, _NODE = "worker process has died", "running low on memory", ("node has died", "node was terminated", "preempted")
_DETAIL = re.compile(r"Worker exit detail: (.{1,150}?)(?:\. |\.?\n|\.?$)")


@dataclass
class _Deaths:
    """Of one trial's processes, in a row and without a new epoch in between."""

    epochs: int
    said: str
    times: int = 1


class Losses(Callback):
    """Tune's callback that counts them.

    Args:
        most: that Tune starts a trial again after, ``run.max_failures``.
    """

    def __init__(self, store: SearchStore, most: int) -> None:
        self._store, self._most = store, most
        self._tries: Counter[str] = Counter()
        self._deaths: dict[str, _Deaths] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; there is nothing here to save."""
        return {}

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.lost(trial.config["run"], last_failure(trial), int((trial.last_result or {}).get("epochs_done", 0)))

    def lost(self, run: str, said: str, epochs: int) -> None:
        """A trial is started again, after these words of Ray's and so many epochs."""
        self._tries[run] += 1
        before = self._deaths.pop(run, None)
        if died_alone(said):
            again = before is not None and epochs <= before.epochs
            self._deaths[run] = _Deaths(epochs, said, before.times + 1 if before and again else 1)

    def given_up_early(self, candidate: Candidate) -> bool:
        """Whether a trial ended without a result before its tries were used up.

        Tune counts the death of a process that it keeps for the next trial twice, and gives that trial up.
        """
        if self._tries[candidate.run] >= self._most or self._store.summary(candidate.run) is not None:
            return False
        self._tries[candidate.run] += 1
        return True

    def judge(self, candidate: Candidate) -> str | None:
        """Give a trial that has ended without a result a failed one, if all its deaths were its own; the reason."""
        deaths = self._deaths.get(candidate.run)
        if deaths is None or deaths.times < self._most or self._store.summary(candidate.run) is not None:
            return None
        reason = MEMORY if _FULL in deaths.said else DIED
        # The last one is not among those that it was started again after.
        detail = f"its process died {deaths.times + 1} times without a new epoch, and its node lives: {described(deaths.said)}"
        with contextlib.suppress(OSError):
            write_failure(candidate.spec, self._store.folder, reason, detail)
            return reason
        return None


def died_alone(said: str) -> bool:
    """Whether these words are of a process that died while its node lived."""
    return (_PROCESS in said or _FULL in said) and not any(words in said for words in _NODE)


def described(said: str) -> str:
    """The part of Ray's words that tells something."""
    found = _DETAIL.search(said)
    return one_line(found[1] if found else said.strip().splitlines()[-1], 200)


def last_failure(trial: Any) -> str:
    """What Tune wrote of a trial's last failure."""
    try:
        with open(trial.error_file, errors="replace") as file:
            return file.read().rpartition("Failure # ")[2]
    except (OSError, TypeError):
        return ""
