"""Trials that hang: ended from outside, with a failed result. Called by the driver of a search and by jobs on Ray."""

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
# Seconds between two steps of Tune after which it was the driver that hung: every trial gets its whole time again.
DRIVER_PAUSE = 30.0
# Seconds between two checks whether silent trials wait for a node.
WAITING_CHECK = 30.0


class Watchdog(Callback):
    """Tune's callback that gives a trial without a report for ``timeout`` seconds a failed result, and kills its process.

    Tune then starts the trial once more, which finds the result and ends.
    """

    def __init__(self, root: str, timeout: float) -> None:
        self._root, self._timeout = root, timeout
        self._last_report: dict[str, float] = {}
        self._last_step = self._last_check = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; there is nothing here to save."""
        return {
            "_root": self._root,
            "_timeout": self._timeout,
            "_last_report": {},
            "_last_step": 0.0,
            "_last_check": 0.0,
        }

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._last_report[trial.trial_id] = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._last_report[trial.trial_id] = time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._last_report.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._last_report.pop(trial.trial_id, None)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        now = time.monotonic()
        if now - self._last_step > DRIVER_PAUSE:
            self._last_report = dict.fromkeys(self._last_report, now)
        self._last_step = now
        often = min(WAITING_CHECK, self._timeout / 3)
        if now - self._last_check > often:
            self._last_check = now
            self._last_report |= dict.fromkeys(self._waiting(trials, now - often), now)
        late = {
            name for name, reported in self._last_report.items() if now - reported > self._timeout
        }
        for trial in trials if late else ():
            if trial.trial_id in late and trial.status == "RUNNING":
                self._end(trial)

    def _waiting(self, trials: list[Any], since: float) -> set[str]:
        """Of the trials without a report since then, those whose workers have no node, at the start or again."""
        silent = [
            trial
            for trial in trials
            if self._last_report.get(trial.trial_id, since) < since and trial.status == "RUNNING"
        ]
        actors = {trial.trial_id: trial_actor(trial) for trial in silent}
        running = {name: actor for name, actor in actors.items() if actor is not None}
        return waiting(running) if running else set()

    def _end(self, trial: Any) -> None:
        import ray

        # Tried again after the same time, should the storage fail or the process survive.
        self._last_report[trial.trial_id] = time.monotonic()
        spec = TrialSpec.from_json(trial.config["trial"])
        try:
            root = open_folder(self._root)
            epochs = newest_progress(root.sub(spec.folder))
            if epochs and time.time() - epochs[-1].ts / 1000 < self._timeout:
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
