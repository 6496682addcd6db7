"""What a dead actor had reserved is given back; what anybody else holds is left alone."""

import time
from typing import Any

import pytest

from tinynet_search.orphans import sweep

pytestmark = pytest.mark.ray


def test_groups_of_dead_actors_are_given_back(ray_cluster: Any) -> None:
    import ray
    from ray.util import placement_group, placement_group_table, remove_placement_group

    class Holder:
        def hold(self, name: str, lifetime: str | None = None) -> None:
            ray.get(placement_group([{"CPU": 0.25}], name=name, lifetime=lifetime).ready())

    holder: Any = ray.remote(num_cpus=0)(Holder)
    dead, alive = holder.remote(), holder.remote()
    ray.get([dead.hold.remote("orphan"), dead.hold.remote("kept", "detached"), alive.hold.remote("held")])
    ours = placement_group([{"CPU": 0.25}], name="ours")
    ray.get(ours.ready())

    def states() -> dict[str, str]:
        return {row["name"]: row["state"] for row in placement_group_table().values() if row["name"]}

    assert sweep() == 0
    ray.kill(dead)
    end = time.monotonic() + 30
    while not sweep():
        assert time.monotonic() < end
        time.sleep(0.1)
    while states()["orphan"] != "REMOVED":
        assert time.monotonic() < end
        time.sleep(0.1)
    assert {name: states()[name] for name in ("kept", "held", "ours")} == dict.fromkeys(("kept", "held", "ours"), "CREATED")
    assert sweep() == 0
    ray.kill(alive)
    for group in (ours, ray.util.get_placement_group("kept")):
        remove_placement_group(group)
    end = time.monotonic() + 30
    while not sweep():
        assert time.monotonic() < end
        time.sleep(0.1)
