"""Placement groups whose Train controller is dead: Ray keeps them, and the next controller waits for their CPUs and GPUs.

Ray Train has a cleaner for them, which a controller tells of its group once that is there, and Ray itself looks for a dead
actor's or job's groups when it hears of the death. A group that was still being made then is one that nobody knows: its
trial never starts again, in this job or in the next.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from ray.tune import Callback

# Seconds between two looks at the cluster.
EVERY = 5.0
CONTROLLER = "TrainController"


class Orphans(Callback):
    """Tune's callback that gives back what dead actors of this job, and dead Train controllers of dead jobs, had reserved."""

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
    """Remove every such group; how many there were."""
    from ray import PlacementGroupID
    from ray.util import remove_placement_group
    from ray.util.placement_group import PlacementGroup

    found = [PlacementGroup(PlacementGroupID(group.placement_group_id)) for group in _orphans()]
    for group in found:
        remove_placement_group(group)
    return len(found)


def waiting(trials: Mapping[str, Any]) -> set[str]:
    """Of these trials, those whose workers have no place on the cluster, or have lost it with a node.

    Args:
        trials: by name the actors that they are for Tune: the process of each has made a Train controller, which has made a group.
    """
    from ray.core.generated import gcs_pb2

    kind: Any = gcs_pb2
    tables, groups, job = _groups()
    placed = (kind.PlacementGroupTableData.CREATED, kind.PlacementGroupTableData.REMOVED)
    makers = {
        group.creator_actor_id
        for group in groups
        if group.creator_job_id == job and group.state not in placed
    }
    owners = {
        found.owner_address.worker_id
        for maker in makers
        if (found := _actor(tables, maker)) is not None
    }
    if not owners:
        return set()
    rows = {name: _actor(tables, actor._actor_id.binary()) for name, actor in trials.items()}
    return {
        name for name, row in rows.items() if row is not None and row.address.worker_id in owners
    }


def _actor(tables: Any, number: bytes) -> Any:
    """Ray's row of an actor, None where there is none."""
    from ray._raylet import ActorID
    from ray.core.generated import gcs_pb2

    kind: Any = gcs_pb2
    raw = tables.get_actor_info(ActorID(number))
    return kind.ActorTableData.FromString(raw) if raw else None


def _groups() -> tuple[Any, list[Any], bytes]:
    """Ray's own tables, their placement groups, and this job; ``ray.util.placement_group_table`` leaves out whose they are."""
    import ray
    from ray._private import state
    from ray.core.generated import gcs_pb2

    kind: Any = gcs_pb2
    tables = state.state._connect_and_get_accessor()
    groups = [
        kind.PlacementGroupTableData.FromString(row) for row in tables.get_placement_group_table()
    ]
    return tables, groups, bytes.fromhex(ray.get_runtime_context().get_job_id())


def _orphans() -> Iterator[Any]:
    from ray._private import state
    from ray._raylet import ActorID
    from ray.core.generated import gcs_pb2

    kind: Any = gcs_pb2
    tables, groups, job = _groups()
    dead_jobs = {bytes.fromhex(row["JobID"]) for row in state.jobs() if row["IsDead"]}
    for group in groups:
        if (
            group.state != kind.PlacementGroupTableData.REMOVED
            and group.creator_actor_id != ActorID.nil().binary()
        ):

            def actor(creator: bytes = group.creator_actor_id) -> tuple[bool, str]:
                found = _actor(tables, creator)
                return (
                    found is None or found.state == kind.ActorTableData.DEAD,
                    found.class_name if found else CONTROLLER,
                )

            if orphaned(group, job, dead_jobs, actor):
                yield group


def orphaned(
    group: Any, job: bytes, dead_jobs: Collection[bytes], actor: Callable[[], tuple[bool, str]]
) -> bool:
    """Whether nobody is left who could use a group that an actor made.

    Args:
        group: Ray's row of it, of which ``creator_actor_dead`` may be late; job: this one.
        actor: asked whether the actor is dead, and of which class it was.
    """
    if group.is_detached or (group.creator_job_id != job and group.creator_job_id not in dead_jobs):
        return False
    dead, name = actor()
    return (dead or group.creator_actor_dead) and (
        group.creator_job_id == job or name.startswith(CONTROLLER)
    )
