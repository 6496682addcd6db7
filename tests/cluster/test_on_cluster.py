"""Tests of searches on a real cluster: Prometheus metrics, and waiting for a cluster to grow."""

import re
import subprocess
import sys
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
from tinynet_search.cluster.placement import ClusterRequest, max_nodes, wait_for_placement
from tinynet_search.search.driver import run_search

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings(SQLALCHEMY)]


def test_metrics_are_exported(ray_cluster: Any, tmp_path: Path) -> None:
    """Searches of one name, of different owners in different folders, are different series."""
    import ray

    for owner, trials in (("ann", 2), ("bob", 3)):
        run_search(
            tiny_config(
                tmp_path / owner, "search.name=watched", f"search.owner={owner}", trials=trials
            ),
            tracking=f"sqlite:///{tmp_path}/mlflow.db",
        )
    ports = {
        (node["NodeManagerAddress"], node["MetricsExportPort"])
        for node in ray.nodes()
        if node["Alive"]
    }
    end = time.monotonic() + 60
    labels = {
        owner: {f'directory="{tmp_path}/{owner}/watched"', f'owner="{owner}"', 'search="watched"'}
        for owner in ("ann", "bob")
    }
    while True:
        samples, others = (_samples(ports, labels[owner]) for owner in labels)
        if others.get('ray_tinynet_trials{state="finished"}') == 3.0:
            break
        assert time.monotonic() < end, (samples, others)
        time.sleep(1.0)
    assert samples['ray_tinynet_trials{state="finished"}'] == 2.0
    assert others["ray_tinynet_epochs_total{}"] == 6.0
    assert (
        samples['ray_tinynet_trials{state="training"}']
        == samples['ray_tinynet_trials{state="lost"}']
        == 0.0
    )
    assert samples["ray_tinynet_epochs_total{}"] == 4.0
    assert samples["ray_tinynet_images_per_second{}"] == 0.0
    assert 0.0 <= samples["ray_tinynet_publisher_lag_seconds{}"] < 60.0


def _samples(ports: set[tuple[str, int]], search: set[str]) -> dict[str, float]:
    """The metrics of the search, by name and state."""
    samples: dict[str, float] = {}
    for host, port in ports:
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        for line in lines:
            name, _, rest = line.partition("{")
            text, _, value = rest.rpartition("} ")
            labels = set(text.split(","))
            if name.startswith("ray_tinynet_") and search <= labels:
                state = "".join(label for label in labels if label.startswith("state="))
                samples[f"{name}{{{state}}}"] = float(value.split()[0])
    return samples


def test_driver_of_a_different_version_is_refused(ray_cluster: Any) -> None:
    """Ray connects only drivers of exactly its own version; the message contains both versions."""
    script = (
        "import sys, ray; from tinynet_search.cluster.connect import cluster\n"
        "from tinynet_search.config.sections import RunSection\n"
        "ray.__version__ = '2.58.99'\n"
        "with cluster(RunSection(address=sys.argv[1])): pass"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script, ray_cluster.address],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert re.search(
        rf"RequestError: the cluster at '{ray_cluster.address}' runs Ray 2\.58\.\d+ and Python "
        r"3\.\S+, this machine Ray 2\.58\.99 and Python 3\.\S+: Ray connects a driver of the same "
        r"versions only; install them here, or run the search as a job with tinynet submit\n",
        completed.stderr,
    ), completed.stderr


def test_driver_has_the_name_of_the_search_in_the_dashboard(ray_cluster: Any) -> None:
    """For a driver that connects with ``run.address``, without a submitted job."""
    script = (
        "import sys\n"
        "from ray.job_submission import JobSubmissionClient\n"
        "from tinynet_search.cluster.connect import cluster\n"
        "from tinynet_search.config.sections import RunSection\n"
        "with cluster(RunSection(address=sys.argv[1]), 'my-search'):\n"
        "    for job in JobSubmissionClient(sys.argv[2]).list_jobs():\n"
        "        print(job.type.value, job.status.value, (job.metadata or {}).get('job_name'))\n"
    )
    dashboard = f"http://{ray_cluster.head_node.address_info['webui_url']}"
    completed = subprocess.run(
        [sys.executable, "-c", script, ray_cluster.address, dashboard],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "DRIVER RUNNING my-search\n" in completed.stdout, completed.stderr


def _request(storage: Path, *settings: str) -> ClusterRequest:
    config = tiny_config(storage, *settings)
    return ClusterRequest.of(config, config.resolve())


@pytest.fixture
def add_node(ray_cluster: Any) -> Iterator[Any]:
    """The cluster with a simulated autoscaler that reports one possible node of two CPUs.

    Yields a function that adds this node.
    """
    import ray
    from ray import _raylet
    from ray.core.generated import autoscaler_pb2
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

    pb2: Any = autoscaler_pb2
    names: Any = _raylet
    group = pb2.NodeGroupConfig(name="large", resources={"CPU": 2}, min_count=0, max_count=1)
    config = pb2.ClusterConfig(node_group_configs=[group])
    key, namespace = (
        names.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode(),
        names.GCS_AUTOSCALER_STATE_NAMESPACE.encode(),
    )
    _internal_kv_put(key, config.SerializeToString(), namespace=namespace)
    nodes: list[Any] = []
    yield lambda: nodes.append(ray_cluster.add_node(num_cpus=2))
    _internal_kv_del(key, namespace=namespace)
    for node in nodes:
        ray_cluster.remove_node(node)
    assert ray.is_initialized()


def test_search_waits_for_growing_cluster(
    add_node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, messages = _request(tmp_path, "scaling.cpus=2"), list[str]()
    assert sum(node.holds({"CPU": 2.0}) * node.count for node in max_nodes()) == 1
    placements: list[placement.Placement] = []
    waiting = threading.Thread(
        target=lambda: placements.append(wait_for_placement(request, [1.0], messages.append)),
        daemon=True,
    )
    waiting.start()
    time.sleep(3.0)
    assert waiting.is_alive()
    add_node()
    waiting.join(60)
    assert [place.at_once for place in placements] == [1]
    assert messages[0].startswith(
        "waiting for the cluster to grow, 0 s: a trial needs 1 x 2 CPU, the cluster has 3 nodes"
    )


def test_timeout_when_cluster_does_not_grow(
    add_node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "GROWTH_TIMEOUT", 1.5)
    with pytest.raises(
        RequestError,
        match=r"no room for a trial of 1 x 2 CPU on nodes of .*; the cluster did not grow within",
    ):
        wait_for_placement(_request(tmp_path, "scaling.cpus=2"), [1.0], lambda line: None)


def test_wait_for_nodes_without_autoscaler_report(ray_cluster: Any, tmp_path: Path) -> None:
    """The search then uses ``run.concurrency``, since pending trials make a cluster grow."""
    messages = list[str]()
    two_cpus = _request(tmp_path, "scaling.cpus=2", "run.wait_for_nodes=1s")
    with pytest.raises(RequestError, match=r"did not grow within 1 s"):
        wait_for_placement(two_cpus, [1.0], messages.append)
    assert messages[0].startswith("waiting for the cluster to grow, 0 s")
    seven_at_once = _request(tmp_path, "run.wait_for_nodes=30m", "run.concurrency=7")
    assert (wait_for_placement(seven_at_once, [1.0], messages.append).at_once, len(messages)) == (
        7,
        1,
    )


def test_trial_that_can_never_fit_fails_immediately(add_node: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no room for a trial of 1 x 3 CPU"):
        wait_for_placement(
            _request(tmp_path, "scaling.cpus=3"), [1.0], lambda line: pytest.fail(line)
        )
