"""Metrics of a search for Prometheus, exported by Ray on every node. Called by the driver of a search.

ray_tinynet_trials{search, state}                    trials that wait, train, are finished, failed, lost or stopped
ray_tinynet_epochs_total{search}                     epochs that have ended; its rate is the search's speed
ray_tinynet_images_per_second{search}                of all trials that train, by their last epochs
ray_tinynet_publisher_lag_seconds{search}            since everything was in MLflow the last time
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ray.tune import Callback
from ray.util import metrics

from tinynet_search.callbacks.progress import STATES, Row

# Seconds between two updates; Ray itself exports every ten.
EVERY = 5.0


class SearchMetrics(Callback):
    """Tune's callback that keeps the metrics up to date.

    Args:
        rows: of ``Progress``; lag: of the publisher, in seconds.
    """

    def __init__(self, search: str, rows: Mapping[str, Row], lag: Callable[[], float]) -> None:
        self._rows, self._lag = rows, lag
        self._speeds: dict[str, float] = {}
        self._next = 0.0
        of_search = {"search": search}

        def gauge(name: str, about: str, *keys: str) -> metrics.Gauge:
            made = metrics.Gauge(f"tinynet_{name}", about, tag_keys=("search", *keys))
            made.set_default_tags(of_search)
            return made

        self._trials = gauge("trials", "Trials of a search by state.", "state")
        self._images = gauge(
            "images_per_second", "Training images a second, of all trials that train."
        )
        self._behind = gauge(
            "publisher_lag_seconds", "Seconds since everything was in MLflow the last time."
        )
        self._epochs = metrics.Counter(
            "tinynet_epochs_total", "Epochs that have ended.", tag_keys=("search",)
        )
        self._epochs.set_default_tags(of_search)

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; there is nothing here to save."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "images_per_s" in result:
            self._epochs.inc()
            self._speeds[trial.trial_id] = float(result["images_per_s"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._speeds.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._speeds.pop(trial.trial_id, None)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() >= self._next:
            self.look()

    def look(self) -> None:
        """Set every gauge to its value now."""
        self._next = time.monotonic() + EVERY
        states = Counter(row.state for row in list(self._rows.values()))
        for state in STATES:
            self._trials.set(states[state], {"state": state})
        self._images.set(sum(self._speeds.values()))
        self._behind.set(self._lag())
