"""Tests of RayCluster and RayJob, with the schemas of KubeRay and our own checks."""

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


def schema_errors(document: dict[str, Any]) -> list[str]:
    """Return one line for each violation of the schema."""
    validator = jsonschema.Draft202012Validator(crd(document["kind"]))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def ray_specs(which: str) -> list[dict[str, Any]]:
    """Return the cluster specification of every RayCluster and RayJob of a set."""
    return [
        document["spec"].get("rayClusterSpec", document["spec"])
        for document in of_kind(which, *KUBERAY_KINDS)
    ]


@pytest.mark.parametrize("which", SETS)
def test_every_kuberay_object_matches_its_schema(which: str) -> None:
    objects = [
        (path, document)
        for path, document in documents(which)
        if document["apiVersion"] == "ray.io/v1"
    ]
    assert {document["kind"] for _, document in objects} == set(KUBERAY_KINDS)
    for path, document in objects:
        assert schema_errors(document) == [], path


def test_schema_rejects_typos_and_wrong_types() -> None:
    (cluster,) = of_kind("production", "RayCluster")
    for change in ({"minReplica": 1}, {"replicas": "four"}):
        wrong = copy.deepcopy(cluster)
        wrong["spec"]["workerGroupSpecs"][0] |= change
        assert len(schema_errors(wrong)) == 1, change
    wrong = copy.deepcopy(cluster)
    wrong["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = (
        "Always"
    )
    assert len(schema_errors(wrong)) == 1
    del wrong["spec"]["headGroupSpec"]
    assert len(schema_errors(wrong)) == 1


@pytest.mark.parametrize("which", SETS)
def test_ray_requires_a_token_and_the_head_runs_no_trials(which: str) -> None:
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
            # Ray's object store falls back to the disk if it does not fit into /dev/shm.
            volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
            shm = volumes["shm"]["emptyDir"]
            assert shm["medium"] == "Memory"
            assert int(group["rayStartParams"]["object-store-memory"]) < quantity(shm["sizeLimit"])
            assert quantity(shm["sizeLimit"]) < quantity(container["resources"]["limits"]["memory"])


@pytest.mark.parametrize("which", SETS)
def test_cluster_uses_autoscaler_v2_and_keeps_nodes_for_a_search(which: str) -> None:
    (cluster,) = of_kind(which, "RayCluster")
    spec = cluster["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == ({"cpu"} if which == "dev" else {"cpu", "gpu"})
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    # Whether a search waits for a group that starts at zero depends on what the autoscaler reports
    # to Ray, so the group of the shipped search does not start at zero.
    assert groups["cpu" if which == "dev" else "gpu"]["minReplicas"] >= 1


@pytest.mark.parametrize("which", SETS)
def test_worker_has_capacity_for_a_trial_of_the_shipped_search(which: str) -> None:
    import tomllib

    (config,) = [
        document
        for document in of_kind(which, "ConfigMap")
        if document["metadata"]["name"] == "search-config"
    ]
    scaling = tomllib.loads(config["data"]["search.toml"])["scaling"]
    (job,) = of_kind(which, "RayJob")
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    limits = containers(group["template"])[0]["resources"]["limits"]
    assert float(limits["cpu"]) >= scaling["cpus"]
    assert float(limits.get("nvidia.com/gpu", 0)) >= scaling.get("gpus", 0)


@pytest.mark.parametrize("which", SETS)
def test_job_can_commit_checkpoints_when_stopped_and_is_retried(which: str) -> None:
    from tinynet_search.jobs.runtime_env import STOP_SECONDS

    (job,) = of_kind(which, "RayJob")
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == {
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
    }
    assert job["spec"]["backoffLimit"] > 0
    # Each repetition of the submitter is one lost head.
    assert job["spec"]["submitterConfig"]["backoffLimit"] > 2
    assert job["spec"]["submissionMode"] == "K8sJobMode"
    assert job["spec"]["entrypoint"].startswith("/opt/tinynet/resume.sh tinynet ")
    assert job["spec"].get("entrypointNumCpus") is None, "the entrypoint runs on the head"
    assert job["spec"]["shutdownAfterJobFinishes"] is True
