"""Tests that only abandoned placement groups are removed, and that waiting trials are detected."""

import time
from typing import Any

import pytest

from tinynet_search.callbacks.placement_groups import (
    is_abandoned,
    remove_abandoned,
    waiting_trials,
)
from tinynet_search.cluster.ray_internals import TRAIN_CONTROLLER, ActorRow, PlacementGroupRow

pytestmark = pytest.mark.quick

THIS_JOB, ENDED_JOB, OTHER_JOB = b"1", b"2", b"3"


@pytest.mark.parametrize(
    ("job", "dead", "name", "recorded", "detached", "abandoned"),
    [
        # Created after Ray had removed the groups of the dead actor.
        (THIS_JOB, True, TRAIN_CONTROLLER, False, False, True),
        (THIS_JOB, False, TRAIN_CONTROLLER, True, False, True),
        (THIS_JOB, True, "Holder", False, False, True),
        (THIS_JOB, False, TRAIN_CONTROLLER, False, False, False),
        (THIS_JOB, True, TRAIN_CONTROLLER, True, True, False),
        # Created after Ray had removed the groups of the killed job.
        (ENDED_JOB, True, TRAIN_CONTROLLER, False, False, True),
        (ENDED_JOB, True, "UserActor", True, False, False),
        (ENDED_JOB, False, TRAIN_CONTROLLER, False, False, False),
        (OTHER_JOB, True, TRAIN_CONTROLLER, True, False, False),
    ],
)
def test_is_abandoned(
    job: bytes, dead: bool, name: str, recorded: bool, detached: bool, abandoned: bool
) -> None:
    group = PlacementGroupRow(b"group", job, b"actor", recorded, detached, "CREATED")
    actor = ActorRow(name, dead, process=b"process", owner=b"owner")
    assert is_abandoned(group, THIS_JOB, {ENDED_JOB}, lambda _: actor) is abandoned


def test_actor_without_record_counts_as_dead_controller() -> None:
    for job in (THIS_JOB, ENDED_JOB):
        group = PlacementGroupRow(b"group", job, b"actor", False, False, "CREATED")
        assert is_abandoned(group, THIS_JOB, {ENDED_JOB}, lambda _: None)


def test_groups_of_drivers_and_tasks_are_kept() -> None:
    group = PlacementGroupRow(b"group", THIS_JOB, None, False, False, "CREATED")
    assert not is_abandoned(group, THIS_JOB, set(), lambda _: None)


@pytest.mark.ray
def test_groups_of_dead_actors_are_removed(ray_cluster: Any) -> None:
    import ray
    from ray.util import placement_group, placement_group_table, remove_placement_group

    class Holder:
        def hold(self, name: str, lifetime: str | None = None) -> None:
            ray.get(placement_group([{"CPU": 0.25}], name=name, lifetime=lifetime).ready())

    holder: Any = ray.remote(num_cpus=0)(Holder)
    dead, alive = holder.remote(), holder.remote()
    ray.get(
        [
            dead.hold.remote("abandoned"),
            dead.hold.remote("kept", "detached"),
            alive.hold.remote("held"),
        ]
    )
    driver_group = placement_group([{"CPU": 0.25}], name="driver")
    ray.get(driver_group.ready())

    def states() -> dict[str, str]:
        return {
            row["name"]: row["state"] for row in placement_group_table().values() if row["name"]
        }

    assert remove_abandoned() == 0
    ray.kill(dead)
    end = time.monotonic() + 30
    while not remove_abandoned():
        assert time.monotonic() < end
        time.sleep(0.1)
    while states()["abandoned"] != "REMOVED":
        assert time.monotonic() < end
        time.sleep(0.1)
    assert {name: states()[name] for name in ("kept", "held", "driver")} == dict.fromkeys(
        ("kept", "held", "driver"), "CREATED"
    )
    assert remove_abandoned() == 0
    ray.kill(alive)
    for group in (driver_group, ray.util.get_placement_group("kept")):
        remove_placement_group(group)
    end = time.monotonic() + 30
    while not remove_abandoned():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.ray
def test_waiting_trials(ray_cluster: Any) -> None:
    """A trial waits only for the group of a controller that its own process has created."""
    import ray
    from ray.util import placement_group, remove_placement_group

    class Controller:
        def start(self, cpus: float) -> Any:
            self.group = placement_group([{"CPU": cpus}])
            return self.group

    class Trial:
        def train(self, cpus: float) -> Any:
            controller: Any = ray.remote(num_cpus=0)(Controller)
            self.controller = controller.remote()
            return ray.get(self.controller.start.remote(cpus))

    trial: Any = ray.remote(num_cpus=0)(Trial)
    waiting, running, idle = (trial.remote() for _ in range(3))
    large, small = ray.get([waiting.train.remote(1000.0), running.train.remote(0.25)])
    driver_group = placement_group([{"CPU": 1000.0}])
    ray.get(small.ready())
    assert waiting_trials({"waiting": waiting, "running": running, "idle": idle}) == {"waiting"}
    for group in (large, small, driver_group):
        remove_placement_group(group)
    assert waiting_trials({"waiting": waiting}) == set()
