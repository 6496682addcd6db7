"""RayCluster and RayJob, against the schemas of KubeRay's own custom resources and what this project needs of them."""

import copy
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.manifests import (
    KUBERAY_KINDS,
    SETS,
    containers,
    crd,
    documents,
    of_kind,
    quantity,
)


def mistakes(document: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(crd(document["kind"]))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def ray_specs(which: str) -> list[dict[str, Any]]:
    return [
        found["spec"].get("rayClusterSpec", found["spec"])
        for found in of_kind(which, *KUBERAY_KINDS)
    ]


@pytest.mark.parametrize("which", SETS)
def test_every_kuberay_object_keeps_to_its_schema(which: str) -> None:
    found = [
        (path, document)
        for path, document in documents(which)
        if document["apiVersion"] == "ray.io/v1"
    ]
    assert {document["kind"] for _, document in found} == set(KUBERAY_KINDS)
    for path, document in found:
        assert mistakes(document) == [], path


def test_a_typo_or_a_wrong_type_is_found() -> None:
    (cluster,) = of_kind("production", "RayCluster")
    for change in ({"minReplica": 1}, {"replicas": "four"}):
        wrong = copy.deepcopy(cluster)
        wrong["spec"]["workerGroupSpecs"][0] |= change
        assert len(mistakes(wrong)) == 1, change
    wrong = copy.deepcopy(cluster)
    wrong["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = (
        "Always"
    )
    assert len(mistakes(wrong)) == 1
    del wrong["spec"]["headGroupSpec"]
    assert len(mistakes(wrong)) == 1


@pytest.mark.parametrize("which", SETS)
def test_a_token_is_asked_for_and_the_head_takes_no_trial(which: str) -> None:
    for spec in ray_specs(which):
        assert spec["authOptions"] == {"mode": "token", "secretName": "ray-token"}
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        for group in groups:
            (container,) = group["template"]["spec"]["containers"]
            environment = {variable["name"]: variable for variable in container["env"]}
            assert environment["RAY_AUTH_MODE"]["value"] == "token"
            assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {
                "name": "ray-token",
                "key": "auth_token",
            }
            assert environment["MLFLOW_TRACKING_URI"]["value"] == "http://mlflow:5000"
            assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {
                "/shared",
                "/dev/shm",
                "/tmp",
                "/home/tinynet",
            }
            # Ray's object store falls back to the disk where it does not fit into /dev/shm.
            shm = next(
                volume["emptyDir"]
                for volume in group["template"]["spec"]["volumes"]
                if volume["name"] == "shm"
            )
            assert shm["medium"] == "Memory"
            assert int(group["rayStartParams"]["object-store-memory"]) < quantity(shm["sizeLimit"])
            assert quantity(shm["sizeLimit"]) < quantity(container["resources"]["limits"]["memory"])


@pytest.mark.parametrize("which", SETS)
def test_the_cluster_scales_by_autoscaler_v2_and_keeps_what_a_search_takes(which: str) -> None:
    (cluster,) = of_kind(which, "RayCluster")
    spec = cluster["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == ({"cpu"} if which == "dev" else {"cpu", "gpu"})
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    # Whether a search waits for a group that starts at zero is up to what the autoscaler tells Ray: none is shipped so.
    assert groups["cpu" if which == "dev" else "gpu"]["minReplicas"] >= 1


@pytest.mark.parametrize("which", SETS)
def test_a_worker_holds_a_trial_of_the_search_that_is_shipped(which: str) -> None:
    import tomllib

    (config,) = [
        found
        for found in of_kind(which, "ConfigMap")
        if found["metadata"]["name"] == "search-config"
    ]
    scaling = tomllib.loads(config["data"]["search.toml"])["scaling"]
    (job,) = of_kind(which, "RayJob")
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    limits = containers(group["template"])[0]["resources"]["limits"]
    assert float(limits["cpu"]) >= scaling["cpus"]
    assert float(limits.get("nvidia.com/gpu", 0)) >= scaling.get("gpus", 0)


@pytest.mark.parametrize("which", SETS)
def test_the_job_can_be_stopped_gently_and_runs_again(which: str) -> None:
    from tinynet_search.jobs.runtime_env import STOP_SECONDS

    (job,) = of_kind(which, "RayJob")
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == {
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
    }
    assert job["spec"]["backoffLimit"] > 0
    assert job["spec"]["shutdownAfterJobFinishes"] is True
