"""What a dead actor had reserved is given back; what anybody else holds is left alone."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from tinynet_search.callbacks.placement_groups import CONTROLLER, orphaned, sweep, waiting

pytestmark = pytest.mark.quick

OURS, GONE, OTHERS = b"1", b"2", b"3"


@pytest.mark.parametrize(
    ("job", "dead", "name", "told", "detached", "given_back"),
    [
        (
            OURS,
            True,
            CONTROLLER,
            False,
            False,
            True,
        ),  # made after Ray had looked for the dead actor's groups
        (OURS, False, CONTROLLER, True, False, True),
        (OURS, True, "Holder", False, False, True),
        (OURS, False, CONTROLLER, False, False, False),
        (OURS, True, CONTROLLER, True, True, False),
        (GONE, True, CONTROLLER, False, False, True),  # and after the job that had been killed
        (GONE, True, "Somebody's", True, False, False),
        (GONE, False, CONTROLLER, False, False, False),
        (OTHERS, True, CONTROLLER, True, False, False),
    ],
)
def test_whose_groups_are_given_back(
    job: bytes, dead: bool, name: str, told: bool, detached: bool, given_back: bool
) -> None:
    group = SimpleNamespace(creator_job_id=job, creator_actor_dead=told, is_detached=detached)
    assert orphaned(group, OURS, {GONE}, lambda: (dead, name)) is given_back


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
