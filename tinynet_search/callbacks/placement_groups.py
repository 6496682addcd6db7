"""Removes placement groups of dead Train controllers, and finds trials that wait for nodes.

Called by the driver of a search, by trainings on Ray, and by the watchdog. Ray Train has a cleaner
for such groups, but a controller registers its group only after the group exists. Ray itself
removes the groups of a dead actor or job when it processes the death. Both miss a group that was
still being created at that moment. Its CPUs and GPUs stay reserved, and the trial cannot start
again, neither in this job nor in the next.
"""

import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from tinynet_search.cluster.ray_internals import (
    TRAIN_CONTROLLER,
    ActorRow,
    PlacementGroupRow,
    actor_id,
    actor_row,
    dead_jobs,
    placement_groups,
)

if TYPE_CHECKING:
    from ray.actor import ActorHandle

# Seconds between two cleanups.
CLEANUP_INTERVAL = 5.0


class PlacementGroupCleaner(Callback):
    """Tune callback that removes abandoned placement groups.

    These are the groups of dead actors of this job, and of dead Train controllers of dead jobs.
    """

    def __init__(self) -> None:
        self._next = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; this one saves its initial state only."""
        return {"_next": 0.0}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + CLEANUP_INTERVAL
            remove_abandoned()


def remove_abandoned() -> int:
    """Remove all groups that nothing can use any more, and return their number."""
    from ray import PlacementGroupID
    from ray.util import remove_placement_group
    from ray.util.placement_group import PlacementGroup

    groups = [PlacementGroup(PlacementGroupID(group.id)) for group in _abandoned()]
    for group in groups:
        remove_placement_group(group)
    return len(groups)


def waiting_trials(trials: Mapping[str, "ActorHandle"]) -> set[str]:
    """The names of the trials whose workers wait for a node, at the start or after a node was lost.

    Args:
        trials: the Tune actor of each trial, by name. The process of such an actor creates a Train
            controller, and the controller creates a placement group.
    """
    job = _current_job()
    creators = {
        group.creator
        for group in placement_groups()
        if group.job == job and group.creator and group.state not in ("CREATED", "REMOVED")
    }
    controllers = [actor_row(creator) for creator in creators]
    owners = {row.owner for row in controllers if row is not None}
    if not owners:
        return set()
    rows = {name: actor_row(actor_id(actor)) for name, actor in trials.items()}
    return {name for name, row in rows.items() if row is not None and row.process in owners}


def _current_job() -> bytes:
    import ray

    return bytes.fromhex(ray.get_runtime_context().get_job_id())


def _abandoned() -> list[PlacementGroupRow]:
    job, groups, ended = _current_job(), placement_groups(), dead_jobs()
    return [
        group
        for group in groups
        if group.state != "REMOVED" and is_abandoned(group, job, ended, actor_row)
    ]


def is_abandoned(
    group: PlacementGroupRow,
    job: bytes,
    ended: Collection[bytes],
    find_actor: Callable[[bytes], ActorRow | None],
) -> bool:
    """Whether an actor created the group, and no living process can use it any more.

    Args:
        group: Ray's record of the group.
        job: the id of this driver's job.
        ended: the ids of the jobs that have ended.
        find_actor: returns Ray's record of an actor; called only if the record decides.
    """
    if group.creator is None or group.detached or (group.job != job and group.job not in ended):
        return False
    creator = find_actor(group.creator)
    name = creator.class_name if creator else TRAIN_CONTROLLER
    died = creator is None or creator.dead or group.creator_died
    return died and (group.job == job or name.startswith(TRAIN_CONTROLLER))
