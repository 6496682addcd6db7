"""Exports metrics of a search for Prometheus, through Ray on every node.

Called by the driver of a search.

ray_tinynet_trials               trials by state (``progress.STATES``, the label ``state``)
ray_tinynet_epochs_total         completed epochs; the rate is the speed of the search
ray_tinynet_images_per_second    sum over the training trials, from their last epochs
ray_tinynet_publisher_lag_seconds  seconds since everything was last in MLflow

All have the labels ``search``, ``owner`` and ``directory``, the URL of the search directory without
its options: searches of one name are different series.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ray.tune import Callback
from ray.util import metrics

from tinynet_search.callbacks.progress import STATES, Row

# Seconds between two updates; Ray exports every ten seconds.
UPDATE_INTERVAL = 5.0


@dataclass(frozen=True)
class SearchLabels:
    """The labels of every metric.

    Attributes:
        search: the name of the search.
        owner: its owner.
        directory: the URL of its directory.
    """

    search: str
    owner: str
    directory: str


class SearchMetrics(Callback):
    """Tune callback that keeps the metrics up to date.

    Args:
        labels: which search this is.
        rows: the rows of ``Progress``, by run.
        lag: returns the lag of the publisher in seconds.
    """

    def __init__(
        self, labels: SearchLabels, rows: Mapping[str, Row], lag: Callable[[], float]
    ) -> None:
        self._rows, self._lag = rows, lag
        self._speeds: dict[str, float] = {}
        self._next = 0.0
        tags: dict[str, str] = asdict(labels)

        def gauge(name: str, description: str, *keys: str) -> metrics.Gauge:
            result = metrics.Gauge(f"tinynet_{name}", description, tag_keys=(*tags, *keys))
            result.set_default_tags(tags)
            return result

        self._trials = gauge("trials", "Trials of a search by state.", "state")
        self._images = gauge(
            "images_per_second", "Training images per second, summed over the training trials."
        )
        self._publisher_lag = gauge(
            "publisher_lag_seconds", "Seconds since everything was last in MLflow."
        )
        self._epochs = metrics.Counter(
            "tinynet_epochs_total", "Completed epochs.", tag_keys=tuple(tags)
        )
        self._epochs.set_default_tags(tags)

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; this one has no state to save."""
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
            self.update()

    def update(self) -> None:
        """Set every gauge to its current value."""
        self._next = time.monotonic() + UPDATE_INTERVAL
        states = Counter(row.state for row in list(self._rows.values()))
        for state in STATES:
            self._trials.set(states[state], {"state": state})
        self._images.set(sum(self._speeds.values()))
        self._publisher_lag.set(self._lag())
