"""Placement groups whose Train controller is dead: Ray keeps them to the end of the job, and the next controller waits for them.

Ray Train has a cleaner for them, which a controller tells of its group once that is there: one that dies in between
leaves a group that nobody knows, and its trial never starts again.
"""

import time
from collections.abc import Iterator
from typing import Any

from ray.tune import Callback

# Seconds between two looks at the cluster.
EVERY = 5.0


class Orphans(Callback):
    """Tune's callback that gives back what a dead actor of this job had reserved."""

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
    """Remove every group of this job whose actor is dead; how many there were."""
    from ray import PlacementGroupID
    from ray.util import remove_placement_group
    from ray.util.placement_group import PlacementGroup

    found = [PlacementGroup(PlacementGroupID(group.placement_group_id)) for group in _orphans()]
    for group in found:
        remove_placement_group(group)
    return len(found)


def _orphans() -> Iterator[Any]:
    """As Ray's own tables have them; ``ray.util.placement_group_table`` leaves out whose they are."""
    import ray
    from ray._private import state
    from ray._raylet import ActorID
    from ray.core.generated import gcs_pb2

    kind: Any = gcs_pb2
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    nobody, removed = ActorID.nil().binary(), kind.PlacementGroupTableData.REMOVED
    for raw in state.state._connect_and_get_accessor().get_placement_group_table():
        group = kind.PlacementGroupTableData.FromString(raw)
        of_an_actor = group.creator_job_id == job and group.creator_actor_id != nobody
        if of_an_actor and group.creator_actor_dead and not group.is_detached and group.state != removed:
            yield group
