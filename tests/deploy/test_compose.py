"""compose.yaml, by a parser of the compose specification (the package compose-spec) and by what this project needs of it.

Checked by the parser: every key is one of the specification, every value can be read, networks and volumes are there. Its
check skips where it is not installed; then only the lists written down here find a wrong key. Checked here: what refers to
another part of the file finds it; addresses, ports, secrets and privileges. Not checked: what an engine makes of it.
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

TOP = {"name", "services", "networks", "volumes"}
SERVICE = {
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
    "read_only": bool,
    "restart": str,
    "security_opt": list,
    "shm_size": str,
    "tmpfs": list,
    "user": str,
    "volumes": list,
}
WITHIN = {
    "build": {"context", "dockerfile", "target", "args"},
    "deploy": {"replicas", "resources"},
    "healthcheck": {"test", "interval", "timeout", "retries", "start_period"},
    "logging": {"driver", "options"},
}
VOLUME = {"type", "source", "target", "read_only"}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
SECRETS = re.compile(r"TOKEN|PASSWORD|SECRET|ACCESS_KEY")
INTERNAL = {"cluster", "stores"}
FILES = ("compose.yaml", "compose.gpu.yaml")


def services() -> dict[str, dict[str, Any]]:
    return compose()["services"]


def interpolated(file: str) -> dict[str, Any]:
    """The file with its variables' defaults, as Compose reads it before it looks at the values."""
    text = (DEPLOY / "compose" / file).read_text(encoding="utf-8")
    return yaml.safe_load(
        re.sub(r"\$\{\w+:(?:-([^}]*)|\?[^}]*)\}", lambda found: found[1] or "given", text)
    )


def mistake(document: dict[str, Any]) -> str | None:
    """What the parser has against a file; skips where it is not installed."""
    parser = require_module("compose_spec", "compose-spec")
    try:
        parser.PyCompose.from_json(json.dumps(document)).validate()
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("file", FILES)
def test_the_file_keeps_to_the_specification(file: str) -> None:
    assert mistake(interpolated(file)) is None


def test_a_typo_or_a_value_that_cannot_be_read_is_found() -> None:
    for path, value, said in (
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
        *within, last = path.split(".")
        inner = wrong
        for key in within:
            inner = inner[key]
        inner[last] = value
        assert said in str(mistake(wrong)), path


@pytest.mark.parametrize("file", FILES)
def test_every_key_is_one_of_the_specification(file: str) -> None:
    loaded = compose(file)
    assert {key for key in loaded if not key.startswith("x-")} <= TOP
    for name, service in loaded["services"].items():
        for key, value in service.items():
            assert key in SERVICE, (name, key)
            assert isinstance(value, SERVICE[key]), (name, key, value)
            assert key not in WITHIN or set(value) <= WITHIN[key], (name, key)
        assert all(isinstance(value, str) for value in service.get("environment", {}).values()), (
            name
        )
        resources = service.get("deploy", {}).get("resources", {})
        assert set(resources) <= {"limits", "reservations"}, name
        assert set(resources.get("limits", {})) <= {"cpus", "memory"}, name
        assert set(resources.get("reservations", {})) <= {"devices"}, name
        for volume in service.get("volumes", []):
            assert set(volume) <= VOLUME and volume["type"] in ("volume", "bind"), (name, volume)


def test_what_is_referred_to_is_there() -> None:
    loaded = compose()
    for name, service in services().items():
        assert set(service.get("networks", [])) <= set(loaded["networks"]), name
        for other, how in service.get("depends_on", {}).items():
            assert (
                other in services() and set(how) == {"condition"} and how["condition"] in CONDITIONS
            ), (name, other)
            assert how["condition"] != "service_healthy" or "healthcheck" in services()[other], (
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


def test_services_that_talk_share_a_network() -> None:
    for name, service in services().items():
        words = f"{service.get('environment')} {service.get('command')}"
        for host in set(re.findall(r"(?<![\w.])(mlflow|postgres|s3|head):\d+", words)) - {name}:
            assert set(service["networks"]) & set(services()[host]["networks"]), (name, host)


def test_rays_nodes_have_their_addresses_on_the_network_that_they_share() -> None:
    nodes = {
        name: service
        for name, service in services().items()
        if service.get("command", [])[:2] == ["ray", "start"]
    }
    shared = set.intersection(*(set(service["networks"]) for service in nodes.values()))
    assert set(nodes) == {"head", "worker"} and shared == {"cluster"}
    # On several networks Ray takes the address of the one that leads outside, which the others do not reach.
    for name, service in nodes.items():
        command = " ".join(service["command"])
        named = re.findall(r"--node-ip-address[ =](\S+)", command)
        assert len(named) == (len(service["networks"]) > 1), name
        for address in named:
            (fixed,) = {
                given["ipv4_address"]
                for given in service["networks"].values()
                if "ipv4_address" in given
            }
            assert service["networks"]["cluster"]["ipv4_address"] == fixed == address
            (pool,) = compose()["networks"]["cluster"]["ipam"]["config"]
            subnet, others = (
                ipaddress.ip_network(pool["subnet"]),
                ipaddress.ip_network(pool["ip_range"]),
            )
            # Not the gateway's, and not one that a container which starts earlier may get.
            assert ipaddress.ip_address(address) in subnet and ipaddress.ip_address(
                address
            ) not in (subnet[0], subnet[1], subnet[-1])
            assert others.subnet_of(subnet) and ipaddress.ip_address(address) not in others  # pyright: ignore[reportArgumentType]
    # Inside the head its name has an address on each of its networks: a search there asks Ray which one it has.
    assert nodes["head"]["environment"]["RAY_ADDRESS"] == "auto"


def test_the_host_opens_its_own_address_alone_and_the_rest_is_internal() -> None:
    published = {port for service in services().values() for port in service.get("ports", [])}
    assert published == {"127.0.0.1:8265:8265", "127.0.0.1:5000:5000"}
    networks = compose()["networks"]
    assert {name for name, network in networks.items() if network.get("internal")} == INTERNAL
    for name, service in services().items():
        assert service.get("network_mode") in (None, "none"), name
        assert ("edge" in service.get("networks", [])) == ("ports" in service), name
        # Who listens on every address does it on networks that lead nowhere, or behind a port of 127.0.0.1.
        if "0.0.0.0" in str(service.get("command")):
            assert set(service["networks"]) - INTERNAL <= {"edge"}, name


def test_secrets_come_from_the_env_file_and_missing_ones_are_refused() -> None:
    for name, service in services().items():
        for key, value in service.get("environment", {}).items():
            if SECRETS.search(key):
                assert re.fullmatch(r"\$\{[A-Z0-9_]+:\?set it in \.env\}", value), (name, key)
        assert not SECRETS.search(str(service.get("command")) + str(service.get("entrypoint"))), (
            name
        )
    lines = (DEPLOY / "compose/.env.example").read_text(encoding="utf-8").splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    asked = set(
        re.findall(
            r"\$\{([A-Z0-9_]+)", (DEPLOY / "compose/compose.yaml").read_text(encoding="utf-8")
        )
    )
    assert set(example) == asked
    assert all(not value for key, value in example.items() if SECRETS.search(key))
    assert ".env" in (DEPLOY / "compose/.gitignore").read_text(encoding="utf-8").splitlines()


def test_every_service_is_unprivileged() -> None:
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"] and service["read_only"] is True, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        # One has to be root to give a folder away.
        root = name == "s3-folder"
        assert (service["user"].split(":")[0] == "0") == root, name
        assert service.get("cap_add") == (["CHOWN"] if root else None), name
    assert not any("privileged" in found for found in walk(compose()))
