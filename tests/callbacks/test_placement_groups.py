"""What a dead actor had reserved is given back; what anybody else holds is left alone."""

import time
from typing import Any

import pytest

from tinynet_search.callbacks.placement_groups import is_abandoned, sweep, waiting
from tinynet_search.cluster.ray_internals import TRAIN_CONTROLLER, ActorRow, PlacementGroupRow

pytestmark = pytest.mark.quick

THIS_JOB, ENDED_JOB, OTHER_JOB = b"1", b"2", b"3"


@pytest.mark.parametrize(
    ("job", "dead", "name", "recorded", "detached", "given_back"),
    [
        # Made after Ray had looked for the dead actor's groups.
        (THIS_JOB, True, TRAIN_CONTROLLER, False, False, True),
        (THIS_JOB, False, TRAIN_CONTROLLER, True, False, True),
        (THIS_JOB, True, "Holder", False, False, True),
        (THIS_JOB, False, TRAIN_CONTROLLER, False, False, False),
        (THIS_JOB, True, TRAIN_CONTROLLER, True, True, False),
        # And after the job that had been killed.
        (ENDED_JOB, True, TRAIN_CONTROLLER, False, False, True),
        (ENDED_JOB, True, "Somebody's", True, False, False),
        (ENDED_JOB, False, TRAIN_CONTROLLER, False, False, False),
        (OTHER_JOB, True, TRAIN_CONTROLLER, True, False, False),
    ],
)
def test_whose_groups_are_given_back(
    job: bytes, dead: bool, name: str, recorded: bool, detached: bool, given_back: bool
) -> None:
    group = PlacementGroupRow(b"group", job, b"actor", recorded, detached, "CREATED")
    actor = ActorRow(name, dead, process=b"process", owner=b"owner")
    assert is_abandoned(group, THIS_JOB, {ENDED_JOB}, lambda _: actor) is given_back


def test_an_actor_that_ray_has_forgotten_is_a_dead_controller() -> None:
    for job in (THIS_JOB, ENDED_JOB):
        group = PlacementGroupRow(b"group", job, b"actor", False, False, "CREATED")
        assert is_abandoned(group, THIS_JOB, {ENDED_JOB}, lambda _: None)


def test_groups_of_drivers_and_tasks_are_left_alone() -> None:
    group = PlacementGroupRow(b"group", THIS_JOB, None, False, False, "CREATED")
    assert not is_abandoned(group, THIS_JOB, set(), lambda _: None)


@pytest.mark.ray
def test_groups_of_dead_actors_are_given_back(ray_cluster: Any) -> None:
    import ray
    from ray.util import placement_group, placement_group_table, remove_placement_group

    class Holder:
        def hold(self, name: str, lifetime: str | None = None) -> None:
            ray.get(placement_group([{"CPU": 0.25}], name=name, lifetime=lifetime).ready())

    holder: Any = ray.remote(num_cpus=0)(Holder)
    dead, alive = holder.remote(), holder.remote()
    ray.get(
        [
            dead.hold.remote("orphan"),
            dead.hold.remote("kept", "detached"),
            alive.hold.remote("held"),
        ]
    )
    ours = placement_group([{"CPU": 0.25}], name="ours")
    ray.get(ours.ready())

    def states() -> dict[str, str]:
        return {
            row["name"]: row["state"] for row in placement_group_table().values() if row["name"]
        }

    assert sweep() == 0
    ray.kill(dead)
    end = time.monotonic() + 30
    while not sweep():
        assert time.monotonic() < end
        time.sleep(0.1)
    while states()["orphan"] != "REMOVED":
        assert time.monotonic() < end
        time.sleep(0.1)
    assert {name: states()[name] for name in ("kept", "held", "ours")} == dict.fromkeys(
        ("kept", "held", "ours"), "CREATED"
    )
    assert sweep() == 0
    ray.kill(alive)
    for group in (ours, ray.util.get_placement_group("kept")):
        remove_placement_group(group)
    end = time.monotonic() + 30
    while not sweep():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.ray
def test_a_trial_whose_workers_wait_for_a_node_is_told_from_others(ray_cluster: Any) -> None:
    """Its process has made the controller, which has made the group: no other trial waits because of it."""
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
    far, near, idle = (trial.remote() for _ in range(3))
    large, small = ray.get([far.train.remote(1000.0), near.train.remote(0.25)])
    tunes_own = placement_group([{"CPU": 1000.0}])
    ray.get(small.ready())
    assert waiting({"far": far, "near": near, "idle": idle}) == {"far"}
    for group in (large, small, tunes_own):
        remove_placement_group(group)
    assert waiting({"far": far}) == set()
