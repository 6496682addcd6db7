"""Everything in deploy/ against everything else: versions, names, ports, paths, secrets, options, commands, configurations."""

import re
import shlex
import tomllib
from collections.abc import Iterator
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
    launcher,
    of_kind,
    pods,
    texts,
    walk,
)

pytestmark = pytest.mark.quick

PORTS = {"mlflow": 5000, "postgres": 5432, "s3": 8333, "head": 6379}
OUTSIDE = {"postgres", "chrislusf/seaweedfs"}


@cache
def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {name.lower(): version for name, _, version in (line.partition("==") for line in lines)}


def installed(package: str) -> Path:
    from importlib.util import find_spec

    return Path(str(getattr(find_spec(package), "origin", None))).parent


def images() -> Iterator[tuple[str, str]]:
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


def test_every_image_has_its_exact_version() -> None:
    from tinynet_search.version import __version__

    ours = {
        f"tinynet-search:{__version__}-{variant}" for variant in ("cpu", "cuda", "cuda-launcher")
    }
    ours |= {f"tinynet-mlflow:{pinned()['mlflow']}"}
    others = {image for _, image in images() if image.split(":")[0] in OUTSIDE}
    assert {image for _, image in images()} == ours | others
    assert len(others) == len(OUTSIDE), "one version of each, everywhere"
    assert all(re.fullmatch(r"[\w/.-]+:\d+\.\d+[\w.-]*", image) for image in others)
    for where, image in images():
        variant = (
            "cuda-launcher"
            if where == "aws.yaml"
            else "cuda"
            if re.search("production|gpu", where)
            else "cpu"
        )
        assert not image.startswith("tinynet-search:") or image.endswith(f"-{variant}"), (
            where,
            image,
        )
    built = set(re.findall(r"--tag (\S+)", (DEPLOY / "README.md").read_text(encoding="utf-8")))
    assert built == ours


def test_versions_are_those_of_the_constraints() -> None:
    for which in SETS:
        for found in of_kind(which, "RayCluster", "RayJob"):
            spec = found["spec"].get("rayClusterSpec", found["spec"])
            assert spec["rayVersion"] == pinned()["ray"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11"
    for path in texts():
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"[Pp]ython ?:?(3\.\d+)", text)) <= {"3.11"}, path


def test_what_is_installed_by_name_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert set(extras) == {"submit", "demo", "search", "dev"}
    for name, wanted in {"": project["dependencies"], **extras}.items():
        packages = {re.split(r"[\[<>=~!; ]", requirement)[0].lower() for requirement in wanted}
        known = {pin.replace("_", "-") for pin in pinned()}
        assert packages - {"tinynet-search"} <= known, name


@pytest.mark.parametrize("which", SETS)
def test_every_secret_that_is_used_is_one_that_the_readme_makes(which: str) -> None:
    readme = (DEPLOY / "kuberay/README.md").read_text(encoding="utf-8")
    made = {
        (name, key)
        for name, files in re.findall(r"create secret generic (\S+) (.*)", readme)
        for key in re.findall(r"--from-file=([\w-]+)=", files)
    }
    used = {
        (found["secretKeyRef"]["name"], found["secretKeyRef"]["key"])
        for found in walk(of_kind_all(which))
        if "secretKeyRef" in found
    }
    assert used == made
    assert ("ray-token", "auth_token") in made
    assert not of_kind(which, "Secret")
    assert "--from-literal" not in readme


def of_kind_all(which: str) -> list[dict[str, Any]]:
    from tests.deploy.manifests import documents

    return [document for _, document in documents(which)]


@pytest.mark.parametrize("which", SETS)
def test_no_value_of_a_secret_is_written_down(which: str) -> None:
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


def test_services_answer_on_the_ports_that_others_ask() -> None:
    for which in SETS:
        services = {found["metadata"]["name"]: found["spec"] for found in of_kind(which, "Service")}
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
            assert allowed <= {PORTS.get(name, 8265)}, name
    for path in texts():
        text = path.read_text(encoding="utf-8")
        for name, port in re.findall(r"(?<![\w-])(mlflow|postgres|s3|head):(\d+)\b(?!\.)", text):
            assert int(port) == PORTS[name], (path, name, port)


def test_environment_variables_are_ones_that_mlflow_knows() -> None:
    package = installed("mlflow")
    names = ("environment_variables.py", "utils/cli_args.py", "cli/__init__.py")
    known = "".join((package / name).read_text(encoding="utf-8") for name in names)
    for path in texts():
        for name in set(re.findall(r"\b(MLFLOW_[A-Z0-9_]+)\b", path.read_text(encoding="utf-8"))):
            assert f'"{name}"' in known, (path, name)


def servers() -> Iterator[tuple[str, list[str]]]:
    """Every command that is started in a container."""
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
    """Every option that a package's command line defines, read and not imported, which takes seconds."""
    folder = installed(package)
    return {
        option
        for name in sources
        for option in re.findall(r'"(--[a-z-]+)', (folder / name).read_text(encoding="utf-8"))
    }


def test_options_of_mlflow_and_ray_are_ones_that_they_have() -> None:
    mlflow = options("mlflow", "cli/__init__.py", "utils/cli_args.py")
    ray = options("ray", "scripts/scripts.py")
    assert {"--app-name", "--workers"} <= mlflow and {"--head", "--block"} <= ray
    started = [
        (where, command) for where, command in servers() if command[:2] == ["mlflow", "server"]
    ]
    assert len(started) == 3
    for where, command in started:
        assert {word for word in command if word.startswith("--")} <= mlflow, where
        assert command == started[0][1], "the same server everywhere"
    for path in texts():
        text = re.sub(r"\\?\n\s+(?=--|- --)", " ", path.read_text(encoding="utf-8"))
        for line in re.findall(r"\bray start(.*)", text):
            assert set(re.findall(r"(?<!\S)--[a-z-]+", line)) <= ray, (path, line)
    for where, command in servers():
        if where in ("compose head", "compose worker"):
            assert {word.split("=")[0] for word in command if word.startswith("--")} <= ray, where


def commands() -> Iterator[tuple[Path, str]]:
    """Every ``tinynet`` command line: in backticks, on a line of its own, after ``exec``, of a job."""
    for path in texts():
        for line in path.read_text(encoding="utf-8").splitlines():
            found = re.findall(r"`(?:[^`]*\bexec [^`]*?\s)?tinynet ([a-z][^`]*)`", line)
            if "`" not in line:
                found += re.findall(
                    r"^(?:\s*|.*\bexec .*?\s|\s*entrypoint: )tinynet ([a-z].*)", line
                )
            yield from ((path, re.split(r"\s{2,}| &$", command)[0]) for command in found)


def test_every_command_is_one_that_the_command_line_knows() -> None:
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
    inline = [
        (f"{which} search.toml", found["data"]["search.toml"])
        for which in SETS
        for found in of_kind(which, "ConfigMap")
        if "search.toml" in found["data"]
    ]
    return [
        *inline,
        ("compose search.toml", (DEPLOY / "compose/search.toml").read_text(encoding="utf-8")),
    ]


@pytest.mark.parametrize(("where", "text"), configurations(), ids=lambda value: value.split()[0])
def test_configurations_load_and_point_into_the_shared_volume(
    where: str, text: str, tmp_path: Path
) -> None:
    from tinynet_search.config import load_config

    (tmp_path / "search.toml").write_text(text)
    config = load_config(tmp_path / "search.toml")
    assert config.run.executor == "ray_train"
    assert config.storage.path == "/shared/searches"
    assert config.tracking.uri == f"http://mlflow:{PORTS['mlflow']}"
    assert str(config.data_settings().get("path", "/shared/")).startswith("/shared/")


@pytest.mark.parametrize("which", SETS)
def test_the_rayjob_runs_the_configuration_that_is_mounted(which: str) -> None:
    (job,) = of_kind(which, "RayJob")
    assert (
        job["spec"]["entrypoint"] == "tinynet search /config/search.toml --storage /shared/searches"
    )
    (head,) = containers(job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"])
    assert {"name": "config", "mountPath": "/config", "readOnly": True} in head["volumeMounts"]


def test_nothing_floats_and_nothing_is_privileged() -> None:
    for path in texts():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r":latest\b|privileged: true|index-url [^\"]", text), path
        assert all(len(line) <= 250 for line in text.splitlines() if path.suffix != ".md"), path


def test_every_folder_says_what_to_set_and_its_links_lead_somewhere() -> None:
    readmes = [
        DEPLOY / "README.md",
        *(DEPLOY / name / "README.md" for name in ("compose", "kuberay", "slurm", "vm")),
    ]
    for readme in readmes:
        for target in re.findall(r"\]\(([^)#]+)\)", readme.read_text(encoding="utf-8")):
            assert (readme.parent / target).exists(), (readme, target)
    assert "No engine to run containers is at hand here" in readmes[0].read_text(encoding="utf-8")
