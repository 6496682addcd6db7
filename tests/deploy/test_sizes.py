"""How many trials the searches that are shipped run at once, and whether the heads and workers beside them hold so many."""

import re
import tomllib
from dataclasses import dataclass
from typing import Any

import pytest

from tests.deploy.manifests import DEPLOY, SETS, compose, containers, launcher, of_kind, quantity
from tinynet_search.cluster.placement import ClusterRequest, Nodes, at_once
from tinynet_search.config import Config

# Bytes of a head: Ray and the search's driver, and the controller and helpers of each trial that runs.
HEAD, TRIAL = 2.0e9, 1.3e9
INSTANCES = {"m7i.xlarge": quantity("16Gi")}


@dataclass(frozen=True)
class Shipped:
    """A search, the workers that are shipped for it, and the memory of every head that is."""

    config: Config
    workers: list[Nodes]
    heads: dict[str, int]


def limits(group: dict[str, Any]) -> dict[str, str]:
    return containers(group["template"])[0]["resources"]["limits"]


def of_kubernetes(which: str) -> Shipped:
    (config,) = [
        found["data"]["search.toml"]
        for found in of_kind(which, "ConfigMap")
        if "search.toml" in found["data"]
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
    return Shipped(Config.model_validate(tomllib.loads(config)), workers, memory)


def of_compose() -> Shipped:
    services = compose()["services"]
    deploy = services["worker"]["deploy"]
    cpus = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", deploy["resources"]["limits"]["cpus"])
    config = tomllib.loads((DEPLOY / "compose/search.toml").read_text(encoding="utf-8"))
    head = quantity(services["head"]["deploy"]["resources"]["limits"]["memory"])
    return Shipped(
        Config.model_validate(config),
        [Nodes({"CPU": float(cpus)}, deploy["replicas"])],
        {"head": head},
    )


def shipped(where: str) -> Shipped:
    return of_compose() if where == "compose" else of_kubernetes(where)


@pytest.mark.parametrize("where", [*SETS, "compose"])
def test_a_search_runs_as_many_trials_at_once_as_its_workers_hold(where: str) -> None:
    """One that waits for nodes and does not say how many trials would run as many as the first node holds, to its end."""
    search = shipped(where)
    request = ClusterRequest.of(search.config, search.config.resolve())
    assert search.config.run.concurrency == at_once(request, search.workers)


@pytest.mark.parametrize("where", [*SETS, "compose"])
def test_a_head_has_room_for_the_trials_that_run_at_once(where: str) -> None:
    search = shipped(where)
    trials = search.config.run.concurrency
    assert trials is not None
    for name, memory in search.heads.items():
        assert memory >= HEAD + TRIAL * trials, name


def test_the_launchers_head_has_room_for_a_trial_on_every_gpu() -> None:
    config = launcher("aws.yaml")
    kinds = config["available_node_types"]
    trials = kinds["gpu"]["max_workers"] * kinds["gpu"]["resources"]["GPU"]
    assert (
        INSTANCES[kinds[config["head_node_type"]]["node_config"]["InstanceType"]]
        >= HEAD + TRIAL * trials
    )


def test_the_readme_tells_the_rule() -> None:
    said = (DEPLOY / "kuberay/README.md").read_text(encoding="utf-8")
    assert f"{HEAD / 1e9:g} GB and {TRIAL / 1e9:g} GB for each trial that runs at once" in said
