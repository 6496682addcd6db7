"""Tests of the built-in Kubernetes kinds, with their schemas, and of the security of every pod."""

import copy
from typing import Any

import kubernetes_validate
import pytest

from tests.deploy.manifests import KUBERAY_KINDS, SETS, containers, documents, of_kind, pods, walk

KUBERNETES = "1.34"
HARDENED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
# Kinds of all built-in objects of a set.
KINDS = {
    "Namespace",
    "NetworkPolicy",
    "PersistentVolumeClaim",
    "ConfigMap",
    "Service",
    "StatefulSet",
    "Deployment",
    "Job",
}


def built_in(which: str) -> list[dict[str, Any]]:
    """Return the objects of a set whose kinds are not KubeRay's."""
    return [document for _, document in documents(which) if document["kind"] not in KUBERAY_KINDS]


@pytest.mark.parametrize("which", SETS)
def test_every_object_matches_its_schema(which: str) -> None:
    for document in built_in(which):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    assert {document["kind"] for document in built_in(which)} - {"PersistentVolume"} == KINDS


def test_schema_rejects_a_typo() -> None:
    (wrong,) = copy.deepcopy(of_kind("dev", "Deployment"))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


@pytest.mark.parametrize("which", SETS)
def test_namespace_is_first_and_contains_all_objects(which: str) -> None:
    first = documents(which)[0][1]
    assert (first["kind"], first["metadata"]["name"]) == ("Namespace", "tinynet")
    assert first["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for _, document in documents(which)[1:]:
        assert (
            document["kind"] == "PersistentVolume" or document["metadata"]["namespace"] == "tinynet"
        )


@pytest.mark.parametrize("which", SETS)
def test_every_pod_is_unprivileged_and_has_limits(which: str) -> None:
    for name, template in pods(which):
        security = template["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] >= 999, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(template["spec"]), name
        assert all("hostPath" not in volume for volume in template["spec"].get("volumes", [])), name
        for container in containers(template):
            assert container["securityContext"] == HARDENED, (name, container["name"])
            resources = container["resources"]
            assert {"cpu", "memory"} <= set(resources["requests"]) and {"cpu", "memory"} <= set(
                resources["limits"]
            ), name
    (cluster,) = of_kind(which, "RayCluster")
    assert cluster["spec"]["autoscalerOptions"]["securityContext"] == HARDENED


@pytest.mark.parametrize("which", SETS)
def test_only_the_head_with_autoscaler_has_a_service_account_token(which: str) -> None:
    with_token = [
        name
        for name, template in pods(which)
        if template["spec"].get("automountServiceAccountToken") is not False
    ]
    assert with_token == ["RayCluster/tinynet"]


@pytest.mark.parametrize("which", SETS)
def test_policies_allow_only_the_listed_connections(which: str) -> None:
    policies = {
        policy["metadata"]["name"]: policy["spec"] for policy in of_kind(which, "NetworkPolicy")
    }
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    # Every component in a policy exists, and every pod's component has a policy.
    components = {
        template["metadata"]["labels"]["app.kubernetes.io/component"] for _, template in pods(which)
    }
    in_labels = {
        mapping["app.kubernetes.io/component"]
        for mapping in walk(policies)
        if "app.kubernetes.io/component" in mapping
    }
    in_expressions = {
        value
        for mapping in walk(policies)
        if mapping.get("key") == "app.kubernetes.io/component"
        for value in mapping["values"]
    }
    selected = {
        spec["podSelector"].get("matchLabels", {}).get("app.kubernetes.io/component")
        for spec in policies.values()
    } - {None}
    assert in_labels | in_expressions == components == selected
    # Only Ray's pods may connect to each other on every port.
    for name, spec in policies.items():
        for rule in [*spec.get("ingress", []), *spec.get("egress", [])]:
            assert rule.get("ports") or name == "ray", name
    with_ip_ranges = [
        name
        for name, spec in policies.items()
        if any("ipBlock" in mapping for mapping in walk(spec))
    ]
    assert with_ip_ranges == ["ray-autoscaler"]


@pytest.mark.parametrize("which", SETS)
def test_shared_volume_is_read_write_many(which: str) -> None:
    (claim,) = of_kind(which, "PersistentVolumeClaim")
    assert claim["metadata"]["name"] == "shared"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for name, template in pods(which):
        for volume in template["spec"].get("volumes", []):
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] == "shared", name


@pytest.mark.parametrize("which", SETS)
def test_every_mount_has_a_volume_and_every_configmap_exists(which: str) -> None:
    configs = {document["metadata"]["name"] for document in of_kind(which, "ConfigMap")}
    for name, template in pods(which):
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        claimed = {"data"} if name.startswith("StatefulSet/") else set[str]()
        mounted = {
            mount["name"]
            for container in containers(template)
            for mount in container.get("volumeMounts", [])
        }
        assert mounted == set(volumes) | claimed, name
        for volume in volumes.values():
            assert "configMap" not in volume or volume["configMap"]["name"] in configs, name
