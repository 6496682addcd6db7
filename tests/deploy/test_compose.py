"""Tests of the compose files, with a parser of the compose specification and with our own checks.

The parser (package compose-spec) checks that every key is in the specification, every value is
valid, and networks and volumes exist. Its tests are skipped if it is not installed; then only the
lists in this file detect a wrong key. Our own checks cover references within the file, addresses,
ports, secrets and privileges. The behaviour of a container engine is not checked.
"""

import copy
import ipaddress
import json
import re
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import DEPLOY, compose, walk
from tests.required import require_module

TOP_LEVEL_KEYS = {"name", "services", "networks", "volumes"}
# Allowed keys of a service, with their types.
SERVICE_KEYS = {
    "build": dict,
    "cap_add": list,
    "cap_drop": list,
    "command": list,
    "depends_on": dict,
    "deploy": dict,
    "entrypoint": list,
    "environment": dict,
    "healthcheck": dict,
    "hostname": str,
    "image": str,
    "init": bool,
    "logging": dict,
    "network_mode": str,
    "networks": (list, dict),
    "ports": list,
    "profiles": list,
    "read_only": bool,
    "restart": str,
    "security_opt": list,
    "shm_size": str,
    "tmpfs": list,
    "user": str,
    "volumes": list,
}
# Allowed keys of the mappings in a service.
NESTED_KEYS = {
    "build": {"context", "dockerfile", "target", "args"},
    "deploy": {"replicas", "resources"},
    "healthcheck": {"test", "interval", "timeout", "retries", "start_period"},
    "logging": {"driver", "options"},
}
VOLUME_KEYS = {"type", "source", "target", "read_only"}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
SECRETS = re.compile(r"TOKEN|PASSWORD|SECRET|ACCESS_KEY")
INTERNAL_NETWORKS = {"cluster", "stores"}
FILES = ("compose.yaml", "compose.gpu.yaml")


def services() -> dict[str, dict[str, Any]]:
    """Return the services of compose.yaml by name."""
    return compose()["services"]


def interpolated(file: str) -> dict[str, Any]:
    """Load a file with the default values of its variables, as Compose does before validation."""
    text = (DEPLOY / "compose" / file).read_text(encoding="utf-8")
    return yaml.safe_load(
        re.sub(r"\$\{\w+:(?:-([^}]*)|\?[^}]*)\}", lambda match: match[1] or "given", text)
    )


def validation_error(document: dict[str, Any]) -> str | None:
    """Return the parser's error for a file, or None; skips if the parser is not installed."""
    parser = require_module("compose_spec", "compose-spec")
    try:
        parser.PyCompose.from_json(json.dumps(document)).validate()
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("file", FILES)
def test_file_matches_the_specification(file: str) -> None:
    assert validation_error(interpolated(file)) is None


def test_parser_rejects_typos_and_invalid_values() -> None:
    for path, value, message in (
        ("services.head.read_onl", True, "read_onl"),
        ("services.head.networks.cluster.ipv4_addr", "10.213.85.2", "ipv4_addr"),
        ("services.head.networks.stage", {}, "stage"),
        ("services.head.deploy.resources.limits.memory", "5 gigs", "unit"),
        ("services.head.healthcheck.interval", "ten", "duration"),
        ("services.worker.deploy.replicas", "two", "two"),
        ("services.worker.depends_on.head.condition", "healthy", "healthy"),
        ("networks.cluster.internal", "yes", "boolean"),
    ):
        wrong = copy.deepcopy(interpolated("compose.yaml"))
        *parents, last = path.split(".")
        inner = wrong
        for key in parents:
            inner = inner[key]
        inner[last] = value
        assert message in str(validation_error(wrong)), path


@pytest.mark.parametrize("file", FILES)
def test_keys_and_types_are_allowed(file: str) -> None:
    loaded = compose(file)
    assert {key for key in loaded if not key.startswith("x-")} <= TOP_LEVEL_KEYS
    for name, service in loaded["services"].items():
        for key, value in service.items():
            assert key in SERVICE_KEYS, (name, key)
            assert isinstance(value, SERVICE_KEYS[key]), (name, key, value)
            assert key not in NESTED_KEYS or set(value) <= NESTED_KEYS[key], (name, key)
        assert all(isinstance(value, str) for value in service.get("environment", {}).values()), (
            name
        )
        resources = service.get("deploy", {}).get("resources", {})
        assert set(resources) <= {"limits", "reservations"}, name
        assert set(resources.get("limits", {})) <= {"cpus", "memory"}, name
        assert set(resources.get("reservations", {})) <= {"devices"}, name
        for volume in service.get("volumes", []):
            assert set(volume) <= VOLUME_KEYS and volume["type"] in ("volume", "bind"), (
                name,
                volume,
            )


def test_references_resolve() -> None:
    loaded = compose()
    for name, service in services().items():
        assert set(service.get("networks", [])) <= set(loaded["networks"]), name
        for other, dependency in service.get("depends_on", {}).items():
            assert other in services() and set(dependency) == {"condition"}, (name, other)
            condition = dependency["condition"]
            assert condition in CONDITIONS, (name, other)
            assert condition != "service_healthy" or "healthcheck" in services()[other], (
                name,
                other,
            )
        for volume in service.get("volumes", []):
            source = volume.get("source")
            if volume["type"] == "volume":
                assert source is None or source in loaded["volumes"], (name, volume)
            elif not source.startswith("${"):
                assert (DEPLOY / "compose" / source).exists(), (name, volume)
        if "build" in service:
            dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
            assert (
                DEPLOY / "compose" / service["build"]["context"] / service["build"]["dockerfile"]
            ).resolve() == DEPLOY / "Dockerfile"
            assert re.search(
                rf"^FROM .* AS {service['build']['target']}$", dockerfile, re.MULTILINE
            ), name
    assert set(compose("compose.gpu.yaml")["services"]) <= set(services())


def awaited(name: str) -> set[str]:
    """Return the services that are complete or healthy before a service starts."""
    direct = set(services()[name].get("depends_on", {}))
    return direct.union(*(awaited(other) for other in direct))


def test_every_service_waits_for_what_it_needs() -> None:
    for name, service in services().items():
        environment = service.get("environment", {})
        text = f"{environment} {service.get('command')}"
        hosts = set(re.findall(r"(?<![\w.])(mlflow|postgres|s3|head):\d+", text)) - {name}
        # MLflow's allowed hosts contain its own address; Ray's workers and searches need the user.
        needed = hosts | ({"user"} if "MLFLOW_TRACKING_USERNAME" in environment else set())
        assert needed - {name} <= awaited(name), name
    # Each service that runs once is the condition of another one.
    conditions = {
        (other, dependency["condition"])
        for service in services().values()
        for other, dependency in service.get("depends_on", {}).items()
    }
    once = {
        name
        for name, service in services().items()
        if service["restart"] == "no" and "profiles" not in service
    }
    assert once == {"bucket", "user", "s3-folder"}
    assert {(name, "service_completed_successfully") for name in once} <= conditions


def test_connected_services_share_a_network() -> None:
    for name, service in services().items():
        text = f"{service.get('environment')} {service.get('command')}"
        for host in set(re.findall(r"(?<![\w.])(mlflow|postgres|s3|head):\d+", text)) - {name}:
            assert set(service["networks"]) & set(services()[host]["networks"]), (name, host)


def test_ray_nodes_use_addresses_of_their_shared_network() -> None:
    nodes = {
        name: service
        for name, service in services().items()
        if service.get("command", [])[:2] == ["ray", "start"]
    }
    shared = set.intersection(*(set(service["networks"]) for service in nodes.values()))
    assert set(nodes) == {"head", "worker"} and shared == {"cluster"}
    # On several networks Ray uses the address of the network with external access, to which the
    # other nodes cannot connect.
    for name, service in nodes.items():
        command = " ".join(service["command"])
        addresses = re.findall(r"--node-ip-address[ =](\S+)", command)
        assert len(addresses) == (len(service["networks"]) > 1), name
        for address in addresses:
            (fixed,) = {
                network["ipv4_address"]
                for network in service["networks"].values()
                if "ipv4_address" in network
            }
            assert service["networks"]["cluster"]["ipv4_address"] == fixed == address
            (pool,) = compose()["networks"]["cluster"]["ipam"]["config"]
            subnet = ipaddress.ip_network(pool["subnet"])
            others = ipaddress.ip_network(pool["ip_range"])
            # Neither the gateway's address nor one that a container which starts earlier can get.
            head = ipaddress.ip_address(address)
            assert head in subnet and head not in (subnet[0], subnet[1], subnet[-1])
            assert others.subnet_of(subnet)  # pyright: ignore[reportArgumentType]
            assert head not in others
    # In the head's container, its host name has an address on each of its networks: a search there
    # reads from Ray which address the head uses.
    assert nodes["head"]["environment"]["RAY_ADDRESS"] == "auto"


def test_ports_are_published_on_loopback_only() -> None:
    published = {port for service in services().values() for port in service.get("ports", [])}
    assert published == {"127.0.0.1:8265:8265", "127.0.0.1:5000:5000"}
    networks = compose()["networks"]
    assert {
        name for name, network in networks.items() if network.get("internal")
    } == INTERNAL_NETWORKS
    for name, service in services().items():
        assert service.get("network_mode") in (None, "none"), name
        assert ("edge" in service.get("networks", [])) == ("ports" in service), name
        # Services that listen on all addresses are on internal networks, or behind a port published
        # on 127.0.0.1.
        if "0.0.0.0" in str(service.get("command")):
            assert set(service["networks"]) - INTERNAL_NETWORKS <= {"edge"}, name


def test_secrets_come_from_the_env_file_and_are_required() -> None:
    for name, service in services().items():
        for key, value in service.get("environment", {}).items():
            if SECRETS.search(key):
                assert re.fullmatch(r"\$\{[A-Z0-9_]+:\?set it in \.env\}", value), (name, key)
        assert not SECRETS.search(str(service.get("command")) + str(service.get("entrypoint"))), (
            name
        )
    lines = (DEPLOY / "compose/.env.example").read_text(encoding="utf-8").splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    text = (DEPLOY / "compose/compose.yaml").read_text(encoding="utf-8")
    assert set(example) == set(re.findall(r"\$\{([A-Z0-9_]+)", text))
    assert all(not value for key, value in example.items() if SECRETS.search(key))
    assert ".env" in (DEPLOY / "compose/.gitignore").read_text(encoding="utf-8").splitlines()


def test_every_service_is_unprivileged() -> None:
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"] and service["read_only"] is True, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        # Only root can change the owner of a folder.
        root = name == "s3-folder"
        assert (service["user"].split(":")[0] == "0") == root, name
        assert service.get("cap_add") == (["CHOWN"] if root else None), name
    assert not any("privileged" in mapping for mapping in walk(compose()))
