"""Tests that heads and workers in deploy/ have capacity for the trials of the shipped searches."""

import re
import tomllib
from dataclasses import dataclass
from typing import Any

import pytest

from tests.deploy.manifests import DEPLOY, SETS, compose, containers, launcher, of_kind, quantity
from tinynet_search.cluster.placement import ClusterRequest, Nodes, capacity
from tinynet_search.config import Config

# Memory of a head in bytes: for Ray and the driver of the search, and for the controller and helper
# processes of each running trial.
HEAD_BYTES, TRIAL_BYTES = 2.0e9, 1.3e9
INSTANCE_BYTES = {"m7i.xlarge": quantity("16Gi")}


@dataclass(frozen=True)
class ShippedSearch:
    """A search of deploy/, its workers, and the memory of each head in bytes."""

    config: Config
    workers: list[Nodes]
    heads: dict[str, int]


def limits(group: dict[str, Any]) -> dict[str, str]:
    """Return the resource limits of the first container of a group."""
    return containers(group["template"])[0]["resources"]["limits"]


def read_kubernetes(which: str) -> ShippedSearch:
    """Read the search of a set of manifests, ``dev`` or ``production``."""
    (config,) = [
        document["data"]["search.toml"]
        for document in of_kind(which, "ConfigMap")
        if "search.toml" in document["data"]
    ]
    (cluster,), (job,) = of_kind(which, "RayCluster"), of_kind(which, "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    workers = [
        Nodes(
            {
                "CPU": float(limits(group)["cpu"]),
                "GPU": float(limits(group).get("nvidia.com/gpu", 0)),
            },
            group["maxReplicas"],
        )
        for group in spec["workerGroupSpecs"]
    ]
    heads = {"RayCluster": cluster["spec"]["headGroupSpec"], "RayJob": spec["headGroupSpec"]}
    memory = {name: quantity(limits(group)["memory"]) for name, group in heads.items()}
    return ShippedSearch(Config.model_validate(tomllib.loads(config)), workers, memory)


def read_compose() -> ShippedSearch:
    """Read the search of compose."""
    services = compose()["services"]
    deploy = services["worker"]["deploy"]
    cpus = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", deploy["resources"]["limits"]["cpus"])
    config = tomllib.loads((DEPLOY / "compose/search.toml").read_text(encoding="utf-8"))
    head = quantity(services["head"]["deploy"]["resources"]["limits"]["memory"])
    return ShippedSearch(
        Config.model_validate(config),
        [Nodes({"CPU": float(cpus)}, deploy["replicas"])],
        {"head": head},
    )


def shipped_search(where: str) -> ShippedSearch:
    """Read the search of a set of manifests or of ``compose``."""
    return read_compose() if where == "compose" else read_kubernetes(where)


@pytest.mark.parametrize("where", [*SETS, "compose"])
def test_concurrency_is_the_capacity_of_the_workers(where: str) -> None:
    """Without ``run.concurrency``, a search that waits for nodes would not use later nodes.

    The number of concurrent trials would stay at the capacity of the first node.
    """
    search = shipped_search(where)
    request = ClusterRequest.of(search.config, search.config.resolve())
    assert search.config.run.concurrency == capacity(request, search.workers)


@pytest.mark.parametrize("where", [*SETS, "compose"])
def test_head_has_memory_for_the_concurrent_trials(where: str) -> None:
    search = shipped_search(where)
    trials = search.config.run.concurrency
    assert trials is not None
    for name, memory in search.heads.items():
        assert memory >= HEAD_BYTES + TRIAL_BYTES * trials, name


def test_launcher_head_has_memory_for_one_trial_per_gpu() -> None:
    config = launcher("aws.yaml")
    kinds = config["available_node_types"]
    trials = kinds["gpu"]["max_workers"] * kinds["gpu"]["resources"]["GPU"]
    assert (
        INSTANCE_BYTES[kinds[config["head_node_type"]]["node_config"]["InstanceType"]]
        >= HEAD_BYTES + TRIAL_BYTES * trials
    )


def test_readme_contains_the_rule_for_the_memory_of_a_head() -> None:
    text = (DEPLOY / "kuberay/README.md").read_text(encoding="utf-8")
    rule = f"{HEAD_BYTES / 1e9:g} GB plus {TRIAL_BYTES / 1e9:g} GB for each concurrent trial"
    assert rule in text
