"""Tests that the files of deploy/ agree with each other and with the rest of the repository.

They compare versions, names, ports, paths, secrets, options, commands and configurations.
"""

import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import (
    DEPLOY,
    ROOT,
    SETS,
    compose,
    containers,
    documents,
    launcher,
    of_kind,
    pods,
    text_files,
    walk,
)

pytestmark = pytest.mark.quick

PORTS = {"mlflow": 5000, "postgres": 5432, "s3": 8333, "head": 6379}
DASHBOARD_PORT = 8265
EXTERNAL_IMAGES = {"postgres", "chrislusf/seaweedfs"}


@cache
def pinned() -> dict[str, str]:
    """Return the versions of constraints.txt by package name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {name.lower(): version for name, _, version in (line.partition("==") for line in lines)}


def installed(package: str) -> Path:
    """Return the folder of an installed package without importing the package."""
    from importlib.util import find_spec

    return Path(str(getattr(find_spec(package), "origin", None))).parent


def images() -> Iterator[tuple[str, str]]:
    """Yield every image with the name of the file and the object or service that uses it."""
    for which in SETS:
        for name, template in pods(which):
            yield from (
                (f"{which} {name}", container["image"]) for container in containers(template)
            )
    for file in ("compose.yaml", "compose.gpu.yaml"):
        yield from (
            (f"{file} {name}", service["image"])
            for name, service in compose(file)["services"].items()
            if "image" in service
        )
    yield "aws.yaml", launcher("aws.yaml")["docker"]["image"].removeprefix("registry.example/")


def test_every_image_has_an_exact_version() -> None:
    from tinynet_search.version import __version__

    own = {
        f"tinynet-search:{__version__}-{variant}" for variant in ("cpu", "cuda", "cuda-launcher")
    }
    own |= {f"tinynet-mlflow:{pinned()['mlflow']}"}
    external = {image for _, image in images() if image.split(":")[0] in EXTERNAL_IMAGES}
    assert {image for _, image in images()} == own | external
    assert len(external) == len(EXTERNAL_IMAGES), "expected one version of each external image"
    assert all(re.fullmatch(r"[\w/.-]+:\d+\.\d+[\w.-]*", image) for image in external)
    for where, image in images():
        if image.startswith("tinynet-search:"):
            assert image.endswith(f"-{variant_of(where)}"), (where, image)
    built = set(re.findall(r"--tag (\S+)", (DEPLOY / "README.md").read_text(encoding="utf-8")))
    assert built == own


def variant_of(where: str) -> str:
    """Return the variant of the search's image that a file must use."""
    if where == "aws.yaml":
        return "cuda-launcher"
    return "cuda" if re.search("production|gpu", where) else "cpu"


def test_versions_match_the_constraints() -> None:
    for which in SETS:
        for document in of_kind(which, "RayCluster", "RayJob"):
            spec = document["spec"].get("rayClusterSpec", document["spec"])
            assert spec["rayVersion"] == pinned()["ray"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11"
    for path in text_files():
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"[Pp]ython ?:?(3\.\d+)", text)) <= {"3.11"}, path


def test_client_and_image_have_one_range_of_ray() -> None:
    """Patch versions of Ray work together, so the range is one minor version, as in the image."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    ranges = {
        item.partition("]")[2]
        for requirements in extras.values()
        for item in requirements
        if item.startswith("ray[")
    }
    major, minor, _ = (int(number) for number in pinned()["ray"].split("."))
    assert ranges == {f">={major}.{minor},<{major}.{minor + 1}"}
    assert any(item.startswith("ray[default]") for item in extras["submit"])


def test_all_dependencies_are_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert set(extras) == {"submit", "demo", "search", "dev", "dev-deploy", "dev-docs"}
    for name, requirements in {"": project["dependencies"], **extras}.items():
        packages = {re.split(r"[\[<>=~!; ]", item)[0].lower() for item in requirements}
        known = {pin.replace("_", "-") for pin in pinned()}
        assert packages - {"tinynet-search"} <= known, name


@pytest.mark.parametrize("which", SETS)
def test_used_secrets_are_those_that_the_readme_creates(which: str) -> None:
    readme = (DEPLOY / "kuberay/README.md").read_text(encoding="utf-8")
    created = {
        (name, key)
        for name, files in re.findall(r"create secret generic (\S+) (.*)", readme)
        for key in re.findall(r"--from-file=([\w-]+)=", files)
    }
    used = {
        (mapping["secretKeyRef"]["name"], mapping["secretKeyRef"]["key"])
        for mapping in walk([document for _, document in documents(which)])
        if "secretKeyRef" in mapping
    }
    assert used == created
    assert ("ray-token", "auth_token") in created
    assert not of_kind(which, "Secret")
    assert "--from-literal" not in readme


@pytest.mark.parametrize("which", SETS)
def test_manifests_contain_no_secret_values(which: str) -> None:
    for _, template in pods(which):
        for container in containers(template):
            for variable in container.get("env", []):
                if re.search(r"TOKEN$|PASSWORD|SECRET|ACCESS_KEY|USERNAME", variable["name"]):
                    assert set(variable) == {"name", "valueFrom"}, variable
                else:
                    assert not re.search(r"://[^/@]*:[^/@]*@", variable.get("value", "")), variable
            assert not re.search(
                "password|token|secret", str(container.get("command")), re.IGNORECASE
            )


def test_ports_are_the_same_everywhere() -> None:
    for which in SETS:
        services = {
            service["metadata"]["name"]: service["spec"] for service in of_kind(which, "Service")
        }
        assert {name: spec["ports"][0]["port"] for name, spec in services.items()} == {
            name: PORTS[name] for name in services
        }
        by_component = {
            template["metadata"]["labels"]["app.kubernetes.io/component"]: template
            for _, template in pods(which)
        }
        for name, spec in services.items():
            template = by_component[spec["selector"]["app.kubernetes.io/component"]]
            (port,) = [
                port["containerPort"]
                for container in containers(template)
                for port in container.get("ports", [])
            ]
            assert spec["ports"][0]["targetPort"] == port == PORTS[name]
        for policy in of_kind(which, "NetworkPolicy"):
            name = policy["metadata"]["name"]
            allowed = {
                port["port"]
                for rule in policy["spec"].get("ingress", [])
                for port in rule.get("ports", [])
            }
            assert allowed <= {PORTS.get(name, DASHBOARD_PORT)}, name
    for path in text_files():
        text = path.read_text(encoding="utf-8")
        for name, port in re.findall(r"(?<![\w-])(mlflow|postgres|s3|head):(\d+)\b(?!\.)", text):
            allowed = {PORTS[name], *([DASHBOARD_PORT] if name == "head" else [])}
            assert int(port) in allowed, (path, name, port)


def test_mlflow_defines_the_environment_variables() -> None:
    package = installed("mlflow")
    names = ("environment_variables.py", "utils/cli_args.py", "cli/__init__.py")
    known = "".join((package / name).read_text(encoding="utf-8") for name in names)
    for path in text_files():
        for name in set(re.findall(r"\b(MLFLOW_[A-Z0-9_]+)\b", path.read_text(encoding="utf-8"))):
            assert f'"{name}"' in known, (path, name)


def container_commands() -> Iterator[tuple[str, list[str]]]:
    """Yield every command of a container, with the name of the file and the object or service."""
    for which in SETS:
        for name, template in pods(which):
            yield from (
                (f"{which} {name}", container["command"])
                for container in containers(template)
                if "command" in container
            )
    yield from (
        (f"compose {name}", service["command"])
        for name, service in compose()["services"].items()
        if "command" in service
    )


def options(package: str, *sources: str) -> set[str]:
    """Return the options of a package's command line.

    They are read from the source files, because importing the package takes seconds.
    """
    folder = installed(package)
    return {
        option
        for name in sources
        for option in re.findall(r'"(--[a-z-]+)', (folder / name).read_text(encoding="utf-8"))
    }


def test_mlflow_and_ray_define_the_options() -> None:
    mlflow = options("mlflow", "cli/__init__.py", "utils/cli_args.py")
    ray = options("ray", "scripts/scripts.py")
    assert {"--app-name", "--workers"} <= mlflow and {"--head", "--block"} <= ray
    started = [
        (where, command)
        for where, command in container_commands()
        if command[:2] == ["mlflow", "server"]
    ]
    assert len(started) == 3
    for where, command in started:
        assert {word for word in command if word.startswith("--")} <= mlflow, where
        assert command == started[0][1], "expected the same MLflow server command in all files"
    for path in text_files():
        text = re.sub(r"\\?\n\s+(?=--|- --)", " ", path.read_text(encoding="utf-8"))
        for line in re.findall(r"\bray start(.*)", text):
            assert set(re.findall(r"(?<!\S)--[a-z-]+", line)) <= ray, (path, line)
    for where, command in container_commands():
        if where in ("compose head", "compose worker"):
            assert {word.split("=")[0] for word in command if word.startswith("--")} <= ray, where


def commands() -> Iterator[tuple[Path, str]]:
    """Yield every ``tinynet`` command line with its file.

    It is in backticks, on its own line, after ``exec``, or the entrypoint of a job.
    """
    for path in text_files():
        for line in path.read_text(encoding="utf-8").splitlines():
            matches = re.findall(r"`(?:[^`]*\bexec [^`]*?\s)?tinynet ([a-z][^`]*)`", line)
            if "`" not in line:
                matches += re.findall(
                    r"^(?:\s*|.*\bexec .*?\s|.*resume\.sh )tinynet ([a-z].*)", line
                )
            yield from ((path, re.split(r"\s{2,}| &$", command)[0]) for command in matches)


def test_tinynet_commands_and_options_exist() -> None:
    import typer

    import tinynet_search.cli.main  # noqa: F401
    from tinynet_search.cli.app import app

    root: Any = typer.main.get_command(app)
    checked: set[str] = set()
    for path, line in commands():
        words = shlex.split(line)
        command: Any = root
        while hasattr(command, "commands") and words and not words[0].startswith("-"):
            assert words[0] in command.commands, (path, line)
            checked.add(words[0])
            command = command.commands[words.pop(0)]
        options = {
            option
            for parameter in command.params
            for option in [*parameter.opts, *parameter.secondary_opts]
        }
        assert {word for word in words if word.startswith("-")} <= options, (path, line)
        if words:
            command.make_context("tinynet", words)
    assert {
        "search",
        "submit",
        "check",
        "jobs",
        "list",
        "data",
        "imagenet100",
        "pack",
        "sync",
    } <= checked


def configurations() -> list[tuple[str, str]]:
    """Return the text of every search configuration, with its name."""
    inline = [
        (f"{which} search.toml", document["data"]["search.toml"])
        for which in SETS
        for document in of_kind(which, "ConfigMap")
        if "search.toml" in document["data"]
    ]
    return [
        *inline,
        ("compose search.toml", (DEPLOY / "compose/search.toml").read_text(encoding="utf-8")),
    ]


@pytest.mark.parametrize(("where", "text"), configurations(), ids=lambda value: value.split()[0])
def test_configurations_load_and_use_the_shared_volume(
    where: str, text: str, tmp_path: Path
) -> None:
    from tinynet_search.config import load_config

    (tmp_path / "search.toml").write_text(text)
    config = load_config(tmp_path / "search.toml")
    assert config.run.executor == "ray_train"
    assert config.storage.path == "/shared/searches"
    assert config.tracking.uri == f"http://mlflow:{PORTS['mlflow']}"
    assert str(config.data_settings().get("path", "/shared/")).startswith("/shared/")


def test_readme_waits_for_the_mlflow_user_in_both_sets() -> None:
    readme = (DEPLOY / "kuberay/README.md").read_text(encoding="utf-8")
    for which in SETS:
        after = readme.split(f"kubectl apply -f {which}/\n")[1]
        assert after.startswith(
            "kubectl --namespace tinynet wait --for=condition=complete job/mlfl"
        )


@pytest.mark.parametrize("which", SETS)
def test_rayjob_runs_the_mounted_configuration(which: str) -> None:
    (job,) = of_kind(which, "RayJob")
    assert job["spec"]["entrypoint"] == (
        "/opt/tinynet/resume.sh tinynet search /config/search.toml --storage /shared/searches"
    )
    (head,) = containers(job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"])
    assert {"name": "config", "mountPath": "/config", "readOnly": True} in head["volumeMounts"]


# Ray's limits in seconds for the start of the dashboard and of its modules, and the port of the
# head's runtime environment agent; deploy/README.md gives the reasons.
START_LIMITS = {
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",
    "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": "180",
}
AGENT_PORT = "8266"


def started_nodes() -> Iterator[tuple[str, Mapping[str, Any], str | None]]:
    """Yield the environment of every Ray node, and its ``--runtime-env-agent-port`` or None.

    Each with the name of the file and the object or service that starts the node.
    """
    for name in ("head", "worker"):
        service = compose()["services"][name]
        yield f"compose {name}", service["environment"], agent_port(" ".join(service["command"]))
    for which in SETS:
        for document in of_kind(which, "RayCluster", "RayJob"):
            spec = document["spec"].get("rayClusterSpec", document["spec"])
            for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
                (container,) = containers(group["template"])
                environment = {item["name"]: item.get("value") for item in container["env"]}
                name = f"{which} {document['kind']} {container['name']}"
                yield name, environment, group["rayStartParams"].get("runtime-env-agent-port")
    for file in ("aws.yaml", "local.yaml"):
        for key in ("head", "worker"):
            command = launcher(file)[f"{key}_start_ray_commands"][-1]
            environment = dict(re.findall(r"(?:export )?(\w+)=(\S+?)[; ]", command))
            yield f"{file} {key}", environment, agent_port(command)


def agent_port(command: str) -> str | None:
    """Return the value of the option in a command of Ray, or None."""
    option = re.search(r"--runtime-env-agent-port=(\d+)", command)
    return option[1] if option else None


def test_every_node_has_time_for_a_slow_start() -> None:
    nodes = list(started_nodes())
    assert len(nodes) == 2 + (2 * 2 + 1) + 4 + 4
    for where, environment, port in nodes:
        limits = {name: environment.get(name) for name in START_LIMITS}
        assert limits == START_LIMITS, where
        # Ray's client server, on the head only, waits 30 seconds for an agent without a fixed port.
        assert port == (AGENT_PORT if "head" in where else None), where
    batch = (DEPLOY / "slurm/search.sbatch").read_text(encoding="utf-8")
    assert dict(re.findall(r"^export (RAY_\w+)=(\d+)$", batch, re.MULTILINE)).items() >= (
        START_LIMITS.items()
    )
    assert "--runtime-env-agent-port=$((port + 3))" in batch
    readme = (DEPLOY / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}={value}`" in readme for name, value in START_LIMITS.items())


def test_what_waits_for_a_head_waits_as_long_as_its_start_may_take() -> None:
    longest = int(START_LIMITS["RAY_DASHBOARD_STARTUP_TIMEOUT_S"])
    check = compose()["services"]["head"]["healthcheck"]
    assert int(check["start_period"].removesuffix("s")) >= longest
    batch = (DEPLOY / "slurm/search.sbatch").read_text(encoding="utf-8")
    (attempts,) = re.findall(r"seq (\d+)\); do\n    ray health-check", batch)
    assert int(attempts) * int(re.findall(r"sleep (\d+)\ndone", batch)[0]) >= longest
    assert int(re.findall(r"time\.monotonic\(\) \+ (\d+)", batch)[0]) >= longest


def test_ray_reads_the_start_limits() -> None:
    files = ("_private/ray_constants.py", "dashboard/consts.py")
    constants = "".join((installed("ray") / file).read_text(encoding="utf-8") for file in files)
    for name in START_LIMITS:
        assert f'"{name}"' in constants, name


def test_no_latest_tags_and_no_privileged_containers() -> None:
    for path in text_files():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r":latest\b|privileged: true|index-url [^\"]", text), path
        assert all(len(line) <= 250 for line in text.splitlines() if path.suffix != ".md"), path


def test_every_folder_has_a_readme_with_valid_links() -> None:
    readmes = [
        DEPLOY / "README.md",
        *(
            DEPLOY / name / "README.md"
            for name in ("compose", "kuberay", "mlflow", "monitoring", "slurm", "vm")
        ),
    ]
    for readme in readmes:
        for target in re.findall(r"\]\(([^)#]+)\)", readme.read_text(encoding="utf-8")):
            assert (readme.parent / target).exists(), (readme, target)
    assert "No container engine was available" in readmes[0].read_text(encoding="utf-8")
