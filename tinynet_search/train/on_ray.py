"""Trains a job on a Ray cluster, as the only trial of a Tune run.

Tune retries lost processes as in a search. Called by ``run_job``.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from tinynet_search.callbacks.placement_groups import PlacementGroupCleaner
from tinynet_search.callbacks.watchdog import Watchdog
from tinynet_search.cluster.connect import cluster
from tinynet_search.cluster.placement import ClusterRequest, wait_for_placement
from tinynet_search.cluster.tune import FixedSource, StoppableSource, run_source
from tinynet_search.train.progress import EpochLines
from trainables.result import EpochRecord
from trainables.storage.documents import typed

if TYPE_CHECKING:
    from tinynet_search.train.local import JobRun


class _EpochReporter(Callback):
    """Tune callback that passes the record of each epoch to the lines."""

    def __init__(self, lines: EpochLines) -> None:
        self._lines = lines

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state: Tune saves its callbacks, and this one has no state to save."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "train_loss" in result:
            self._lines.report(typed(EpochRecord, result))


@contextlib.contextmanager
def connected_cluster(
    request: ClusterRequest, macs: float, log: Callable[[str], None]
) -> Iterator[ClusterRequest]:
    """Connect to the cluster and wait until it has room for the trial.

    Args:
        macs: Multiply-adds of the training.

    Yields:
        The request with its final scaling.

    Raises:
        RequestError: The cluster does not respond, or has no room for the trial.
    """
    with cluster(request.run):
        yield wait_for_placement(request, [macs], log).request


def train_on_ray(job_run: "JobRun", lines: EpochLines, *, request: ClusterRequest) -> None:
    """Run the trial to its result, or until its processes were lost too often.

    Must be called inside ``connected_cluster``.
    """
    callbacks = [
        _EpochReporter(lines),
        Watchdog(job_run.root, job_run.config.run.trial_timeout),
        PlacementGroupCleaner(),
    ]
    source = StoppableSource(
        FixedSource([job_run.candidate]), job_run.stopping, lambda candidate: None
    )
    with job_run.stopping.graceful(job_run.lease.request_stop):
        run_source(
            request,
            job_run.root,
            source,
            max_trials=1,
            at_once=1,
            callbacks=callbacks,
            stop=job_run.lease.stop_file,
        )
