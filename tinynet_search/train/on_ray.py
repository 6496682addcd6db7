"""A job on a Ray cluster: the one trial of a Tune run, so that lost processes are retried as a search's are."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from tinynet_search.callbacks.placement_groups import PlacementGroupCleaner
from tinynet_search.callbacks.watchdog import Watchdog
from tinynet_search.cluster.connect import cluster
from tinynet_search.cluster.placement import ClusterRequest, wait_for_placement
from tinynet_search.cluster.tune import Fixed, Guarded, run_source
from tinynet_search.train.progress import EpochLines
from trainables.result import EpochRecord
from trainables.storage.documents import typed

if TYPE_CHECKING:
    from tinynet_search.train.local import Drive


class _Watch(Callback):
    """Tune's callback: every epoch's record goes to the lines."""

    def __init__(self, lines: EpochLines) -> None:
        self._lines = lines

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; there is nothing here to save."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "train_loss" in result:
            self._lines.report(typed(EpochRecord, result))


@contextlib.contextmanager
def joined(
    request: ClusterRequest, macs: float, say: Callable[[str], None]
) -> Iterator[ClusterRequest]:
    """The cluster, with room for the trial of so many multiply-adds; gives the request with its scaling decided.

    Raises:
        RequestError: the cluster does not answer, or has no room for the trial.
    """
    with cluster(request.run):
        yield wait_for_placement(request, [macs], say).request


def train_on_ray(drive: "Drive", lines: EpochLines, *, request: ClusterRequest) -> None:
    """Run the trial to its result, or until its processes were lost too often; within ``joined``."""
    watching = [
        _Watch(lines),
        Watchdog(drive.root, drive.config.run.trial_timeout),
        PlacementGroupCleaner(),
    ]
    source = Guarded(Fixed([drive.candidate]), drive.stopping, lambda candidate: None)
    with drive.stopping.gently(drive.lease.ask_to_stop):
        run_source(
            request,
            drive.root,
            source,
            most=1,
            at_once=1,
            callbacks=watching,
            stop=drive.lease.stop_file,
        )
