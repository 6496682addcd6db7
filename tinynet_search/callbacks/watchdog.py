"""Trials that hang: ended from outside, with a failed result."""

import time
from typing import Any

from ray.tune import Callback

from tinynet_search.callbacks.placement_groups import waiting
from tinynet_search.cluster.ray_internals import trial_actor
from trainables.spec import TrialSpec
from trainables.storage.folder import open_folder
from trainables.trial import write_failure
from trainables.trial_folder import newest_progress

HUNG = "hung"
# Seconds between two looks after which it was the driver that hung, and every trial gets its time anew.
STOOD_STILL = 30.0
# Seconds between two questions whether silent trials wait for a node.
ASKED = 30.0


class Watchdog(Callback):
    """Tune's callback that gives a trial without a report for ``timeout`` seconds a failed result, and kills its process.

    Tune then starts the trial once more, which finds the result and ends.
    """

    def __init__(self, root: str, timeout: float) -> None:
        self._root, self._timeout = root, timeout
        self._heard: dict[str, float] = {}
        self._looked = self._asked = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; there is nothing here to save."""
        return {
            "_root": self._root,
            "_timeout": self._timeout,
            "_heard": {},
            "_looked": 0.0,
            "_asked": 0.0,
        }

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._heard[trial.trial_id] = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._heard[trial.trial_id] = time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._heard.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._heard.pop(trial.trial_id, None)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        now = time.monotonic()
        if now - self._looked > STOOD_STILL:
            self._heard = dict.fromkeys(self._heard, now)
        self._looked = now
        often = min(ASKED, self._timeout / 3)
        if now - self._asked > often:
            self._asked = now
            self._heard |= dict.fromkeys(self._waiting(trials, now - often), now)
        late = {name for name, heard in self._heard.items() if now - heard > self._timeout}
        for trial in trials if late else ():
            if trial.trial_id in late and trial.status == "RUNNING":
                self._end(trial)

    def _waiting(self, trials: list[Any], since: float) -> set[str]:
        """Of the trials that have said nothing since then, those that have not begun, or not again: their workers have no node."""
        silent = [
            trial
            for trial in trials
            if self._heard.get(trial.trial_id, since) < since and trial.status == "RUNNING"
        ]
        actors = {trial.trial_id: trial_actor(trial) for trial in silent}
        there = {name: actor for name, actor in actors.items() if actor is not None}
        return waiting(there) if there else set()

    def _end(self, trial: Any) -> None:
        import ray

        # Tried again after as long, should the storage fail or the process live on.
        self._heard[trial.trial_id] = time.monotonic()
        spec = TrialSpec.from_json(trial.config["trial"])
        try:
            root = open_folder(self._root)
            epochs = newest_progress(root.sub(spec.folder))
            if epochs and time.time() - epochs[-1]["ts"] / 1000 < self._timeout:
                return  # its report is on its way
            write_failure(
                spec,
                root,
                HUNG,
                f"no epoch was reported for {self._timeout:g} s (run.trial_timeout)",
            )
        except OSError:
            return
        actor = trial_actor(trial)
        if actor is not None:
            ray.kill(actor)
