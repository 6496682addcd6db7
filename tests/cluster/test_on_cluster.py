"""A search's place on a real cluster: its figures for those who watch it, and waiting for one that grows."""

import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search_spaces import RequestError
from tests.search.helpers import tiny_config
from tests.tracking.helpers import SQLALCHEMY
from tinynet_search.cluster import placement
from tinynet_search.cluster.placement import ClusterRequest, grown, wait_for_placement
from tinynet_search.search.driver import run_search

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings(SQLALCHEMY)]


def test_the_search_is_seen_where_the_cluster_is_watched(ray_cluster: Any, tmp_path: Path) -> None:
    import ray

    run_search(
        tiny_config(tmp_path, "search.name=watched", trials=2),
        tracking=f"sqlite:///{tmp_path}/mlflow.db",
    )
    ports = {
        (node["NodeManagerAddress"], node["MetricsExportPort"])
        for node in ray.nodes()
        if node["Alive"]
    }
    end = time.monotonic() + 60
    while (found := _figures(ports)).get('ray_tinynet_trials{state="finished"}') != 2.0:
        assert time.monotonic() < end, found
        time.sleep(1.0)
    assert (
        found['ray_tinynet_trials{state="training"}']
        == found['ray_tinynet_trials{state="lost"}']
        == 0.0
    )
    assert found["ray_tinynet_epochs_total{}"] == 4.0
    assert found["ray_tinynet_images_per_second{}"] == 0.0
    assert 0.0 <= found["ray_tinynet_publisher_lag_seconds{}"] < 60.0


def _figures(ports: set[tuple[str, int]]) -> dict[str, float]:
    """Samples of the search, by name and state."""
    found: dict[str, float] = {}
    for host, port in ports:
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        for line in lines:
            if line.startswith("ray_tinynet_") and 'search="watched"' in line:
                name, _, rest = line.partition("{")
                labels, _, value = rest.rpartition("} ")
                state = ",".join(label for label in labels.split(",") if label.startswith("state="))
                found[f"{name}{{{state}}}"] = float(value.split()[0])
    return found


def _request(storage: Path, *settings: str) -> ClusterRequest:
    config = tiny_config(storage, *settings)
    return ClusterRequest.of(config, config.resolve())


@pytest.fixture
def growing(ray_cluster: Any) -> Iterator[Any]:
    """The cluster with an autoscaler's word that one node of two CPUs may come; the test plays the autoscaler."""
    import ray
    from ray import _raylet
    from ray.core.generated import autoscaler_pb2
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

    pb2: Any = autoscaler_pb2
    names: Any = _raylet
    group = pb2.NodeGroupConfig(name="large", resources={"CPU": 2}, min_count=0, max_count=1)
    told = pb2.ClusterConfig(node_group_configs=[group])
    key, namespace = (
        names.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode(),
        names.GCS_AUTOSCALER_STATE_NAMESPACE.encode(),
    )
    _internal_kv_put(key, told.SerializeToString(), namespace=namespace)
    nodes: list[Any] = []
    yield lambda: nodes.append(ray_cluster.add_node(num_cpus=2))
    _internal_kv_del(key, namespace=namespace)
    for node in nodes:
        ray_cluster.remove_node(node)
    assert ray.is_initialized()


def test_a_cluster_that_grows_is_waited_for(
    growing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, said = _request(tmp_path, "scaling.cpus=2"), list[str]()
    assert sum(node.holds({"CPU": 2.0}) * node.count for node in grown()) == 1
    places: list[placement.Placement] = []
    waiting = threading.Thread(
        target=lambda: places.append(wait_for_placement(request, [1.0], said.append)), daemon=True
    )
    waiting.start()
    time.sleep(3.0)
    assert waiting.is_alive()
    growing()
    waiting.join(60)
    assert [place.at_once for place in places] == [1]
    assert said[0].startswith(
        "waiting for the cluster to grow, 0 s: a trial takes 1 x 2 CPU, 3 nodes are there"
    )


def test_one_that_does_not_grow_is_given_up(
    growing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "GROWTH", 1.5)
    with pytest.raises(
        RequestError,
        match=r"no room for a trial of 1 x 2 CPU on nodes of .*; the cluster has not grown for",
    ):
        wait_for_placement(_request(tmp_path, "scaling.cpus=2"), [1.0], lambda line: None)


def test_one_that_tells_nothing_is_waited_for_where_the_user_says_so(
    ray_cluster: Any, tmp_path: Path
) -> None:
    """Then as many trials are asked for at once as the user wants: what waits is what makes a cluster grow."""
    said = list[str]()
    slow = _request(tmp_path, "scaling.cpus=2", "run.wait_for_nodes=1s")
    with pytest.raises(RequestError, match=r"has not grown for 1 s"):
        wait_for_placement(slow, [1.0], said.append)
    assert said[0].startswith("waiting for the cluster to grow, 0 s")
    wide = _request(tmp_path, "run.wait_for_nodes=30m", "run.concurrency=7")
    assert (wait_for_placement(wide, [1.0], said.append).at_once, len(said)) == (7, 1)


def test_one_that_can_never_hold_a_trial_is_refused_at_once(growing: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no room for a trial of 1 x 3 CPU"):
        wait_for_placement(
            _request(tmp_path, "scaling.cpus=3"), [1.0], lambda line: pytest.fail(line)
        )
