"""Ends trials that hang, and writes a failed result for each.

Called by the driver of a search and by trainings on Ray.
"""

import time
from typing import Any

from ray.tune import Callback

from tinynet_search.callbacks.placement_groups import waiting_trials
from tinynet_search.cluster.ray_internals import trial_actor
from trainables.spec import TrialSpec
from trainables.storage.folder import open_folder
from trainables.trial import write_failure
from trainables.trial_folder import newest_progress

HUNG = "hung"
# A longer time in seconds between two steps of Tune means that the driver itself was blocked. The
# timeout of every trial then starts again.
DRIVER_PAUSE = 30.0
# Seconds between two checks for trials that wait for a node.
WAITING_CHECK_INTERVAL = 30.0


class Watchdog(Callback):
    """Tune callback that ends trials without a report for ``timeout`` seconds.

    It writes a failed result and kills the process of the trial. Tune then restarts the trial,
    which finds the result and ends.

    Args:
        root: the URL or path of the search directory.
        timeout: seconds without a report.
    """

    def __init__(self, root: str, timeout: float) -> None:
        self._root, self._timeout = root, timeout
        self._last_report: dict[str, float] = {}
        self._last_step = self._last_check = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; this one saves its initial state only."""
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
        interval = min(WAITING_CHECK_INTERVAL, self._timeout / 3)
        if now - self._last_check > interval:
            self._last_check = now
            self._last_report |= dict.fromkeys(self._waiting(trials, now - interval), now)
        late = {
            name for name, reported in self._last_report.items() if now - reported > self._timeout
        }
        for trial in trials if late else ():
            if trial.trial_id in late and trial.status == "RUNNING":
                self._end(trial)

    def _waiting(self, trials: list[Any], since: float) -> set[str]:
        """The ids of trials without a report after ``since`` whose workers wait for a node."""
        silent = [
            trial
            for trial in trials
            if self._last_report.get(trial.trial_id, since) < since and trial.status == "RUNNING"
        ]
        actors = {trial.trial_id: trial_actor(trial) for trial in silent}
        running = {name: actor for name, actor in actors.items() if actor is not None}
        return waiting_trials(running) if running else set()

    def _end(self, trial: Any) -> None:
        import ray

        # Restarts the timeout: if the storage fails or the process survives, this runs again.
        self._last_report[trial.trial_id] = time.monotonic()
        spec = TrialSpec.from_json(trial.config["trial"])
        try:
            root = open_folder(self._root)
            epochs = newest_progress(root.sub(spec.folder))
            if epochs and time.time() - epochs[-1].ts / 1000 < self._timeout:
                return  # the report has not reached the driver yet
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
