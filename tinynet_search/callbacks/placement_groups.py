"""Placement groups whose Train controller is dead: Ray keeps them, and the next controller waits for their CPUs and GPUs.

Ray Train has a cleaner for them, which a controller tells of its group once that is there, and Ray itself looks for a dead
actor's or job's groups when it hears of the death. A group that was still being made then is one that nobody knows: its
trial never starts again, in this job or in the next.
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

# Seconds between two sweeps.
EVERY = 5.0


class PlacementGroupCleaner(Callback):
    """Tune's callback that removes the groups of dead actors of this job, and of dead Train controllers of dead jobs."""

    def __init__(self) -> None:
        self._next = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; there is nothing here to save."""
        return {"_next": 0.0}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY
            sweep()


def sweep() -> int:
    """Remove every group that nothing can use any more; how many there were."""
    from ray import PlacementGroupID
    from ray.util import remove_placement_group
    from ray.util.placement_group import PlacementGroup

    groups = [PlacementGroup(PlacementGroupID(group.id)) for group in _abandoned()]
    for group in groups:
        remove_placement_group(group)
    return len(groups)


def waiting(trials: Mapping[str, "ActorHandle"]) -> set[str]:
    """Of these trials, those whose workers have no place on the cluster, or have lost it with a node.

    Args:
        trials: by name the actors that they are for Tune: the process of each has made a Train controller, which has made a group.
    """
    job = _current_job()
    creators = {
        group.creator
        for group in placement_groups()
        if group.job == job and group.creator and group.state not in ("CREATED", "REMOVED")
    }
    rows = [actor_row(creator) for creator in creators]
    owners = {row.owner for row in rows if row is not None}
    if not owners:
        return set()
    found = {name: actor_row(actor_id(actor)) for name, actor in trials.items()}
    return {name for name, row in found.items() if row is not None and row.process in owners}


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
    """Whether nothing is left that could use a group that an actor made.

    Args:
        job: this driver's; ended: jobs that have ended.
        find_actor: Ray's record of the creator, which is looked up only where it decides.
    """
    if group.creator is None or group.detached or (group.job != job and group.job not in ended):
        return False
    creator = find_actor(group.creator)
    name = creator.class_name if creator else TRAIN_CONTROLLER
    died = creator is None or creator.dead or group.creator_died
    return died and (group.job == job or name.startswith(TRAIN_CONTROLLER))
