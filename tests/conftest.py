"""One Ray cluster for all tests that need one: a head without CPUs and two nodes of one CPU each."""

import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# What the user's shell names must not reach the tests.
for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """The cluster, and this process in it; ``.address`` is for other processes."""
    from tinynet_search.cluster import QUIET

    os.environ.update(QUIET)
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()
