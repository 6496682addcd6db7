"""Tests of the Dockerfile and of the setup script and settings of the MLflow server.

The Dockerfile is only parsed: these tests do not require a container engine.
"""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from tests.deploy.manifests import DEPLOY, ROOT, SETS, compose, containers, launcher, pods

ENVIRONMENT = {
    "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:1",
    "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "MLFLOW_TRACKING_USERNAME": "tinynet",
    "MLFLOW_TRACKING_PASSWORD": "a password: with a colon",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "the admin's password",
}


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, as name and arguments, without line breaks."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [
        (word, rest) for word, _, rest in (line.partition(" ") for line in lines if line.strip())
    ]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of the Dockerfile by build stage."""
    by_stage: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            by_stage[rest.split(" AS ")[1]] = [(word, rest)]
        elif by_stage:
            by_stage[list(by_stage)[-1]].append((word, rest))
    return by_stage


def test_base_images_have_exact_tags() -> None:
    (python,) = [
        rest.removeprefix("PYTHON=")
        for word, rest in instructions()
        if word == "ARG" and rest.startswith("PYTHON=")
    ]
    assert re.fullmatch(r"3\.11\.\d+-slim-bookworm", python)
    bases = [rest.split(" AS ")[0] for word, rest in instructions() if word == "FROM"]
    assert bases == ["python:${PYTHON}", "base", "base", "ray"]


def test_dependency_layer_contains_the_version_file() -> None:
    """The dependency layer has no source, only the file from which hatch reads the version."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    path = project["tool"]["hatch"]["version"]["path"]
    assert f"echo '__version__ = \"0\"' > {path} " in text
    assert "__version__ = " in (ROOT / path).read_text(encoding="utf-8")


def test_every_source_exists_and_is_sent_to_the_builder() -> None:
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    sent = [line[1:] for line in ignore if line.startswith("!")]
    patterns = [line for line in ignore if line and line[0] not in "#!"]
    assert patterns[0] == "*"
    for word, rest in instructions():
        if word == "COPY":
            *sources, target = rest.split()
            assert target
            for source in sources:
                assert (ROOT / source).exists(), source
                assert any(source == path or source.startswith(f"{path}/") for path in sent), source
        assert word != "ADD"
    assert all((ROOT / path).exists() for path in sent)


@pytest.mark.parametrize("stage", ["ray", "launcher", "mlflow"])
def test_image_does_not_run_as_root(stage: str) -> None:
    users = [rest for word, rest in stages()[stage] if word == "USER"]
    assert users[-1:] == ["1000:1000"]
    words = [word for word, _ in stages()[stage]]
    after_user = words[len(words) - words[::-1].index("USER") :]
    assert not {"RUN", "COPY"} & set(after_user)


def test_image_contains_the_script_that_the_files_run() -> None:
    copies = [rest for word, rest in stages()["ray"] if word == "COPY"]
    assert "deploy/resume.sh /opt/tinynet/resume.sh" in copies
    assert os.access(DEPLOY / "resume.sh", os.X_OK)


def test_readme_lists_the_variables_of_every_container_of_the_server() -> None:
    """The table has exactly the variables that compose and KubeRay set, with their readers."""
    readers = {"mlflow": "server", "bucket": "bucket", "user": "user"}
    expected: dict[str, set[str]] = {}
    for service, reader in readers.items():
        for name in compose()["services"][service]["environment"]:
            expected.setdefault(name, set()).add(reader)
    for which in SETS:
        deployed: dict[str, set[str]] = {}
        for _, template in pods(which):
            for container in containers(template):
                if container["image"].startswith("tinynet-mlflow:"):
                    for item in container["env"]:
                        reader = readers[container["name"]]
                        deployed.setdefault(item["name"], set()).add(reader)
        assert deployed == expected, which
    text = (DEPLOY / "mlflow/README.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| ([a-z, ]+) \|", text, re.MULTILINE))
    assert {name: set(cell.split(", ")) for name, cell in table.items()} == expected
    # Each variable that setup.py reads is one of its command's.
    source = (DEPLOY / "mlflow/setup.py").read_text(encoding="utf-8")
    read = set(re.findall(r'environment(?:\[|\.get\()"([A-Z0-9_]+)"', source))
    assert read <= set(table)
    commands = re.findall(r"^docker run .*", text, re.MULTILINE)
    assert [line.split(" tinynet-mlflow:")[1].partition(" ")[2] for line in commands] == [
        "python /opt/tinynet/setup.py bucket",
        "",
        "python /opt/tinynet/setup.py user",
    ]


def test_dockerfile_contains_no_secret_and_no_index_url() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert not re.search(r"https?://|TOKEN|PASSWORD|SECRET", text)
    installs = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    for rest in installs:
        assert "-c /opt/tinynet/constraints.txt" in rest or "--no-deps" in rest, rest


def test_only_torch_is_installed_from_the_cpu_index() -> None:
    """The CPU index may lack our versions of torch's dependencies.

    pip would search only that index for them and fail, so torch is installed without dependencies
    and the next layer must keep it.
    """
    layers = [rest for word, rest in stages()["ray"] if word == "RUN" and "pip install" in rest]
    (torch_layer,) = [rest for rest in layers if "--index-url" in rest]
    assert (
        "pip install --no-deps -c /opt/tinynet/constraints.txt "
        '--index-url "$TORCH_INDEX" torch torchvision ;;'
    ) in torch_layer
    (dependency_layer,) = [rest for rest in layers if "'.[search]'" in rest]
    assert layers.index(torch_layer) < layers.index(dependency_layer)
    assert not re.search(r"--(upgrade|force-reinstall|no-deps)", dependency_layer)
    check = re.findall(r"&& python -c '([^']+)' \"\$VARIANT\"$", dependency_layer)
    for cuda, variant, status in (
        ("None", "cpu", 0),
        ("'13.0'", "cpu", 1),
        ("'13.0'", "cuda", 0),
        ("None", "cuda", 1),
    ):
        stub = (
            "import sys\n"
            "from types import SimpleNamespace\n"
            f"version = SimpleNamespace(cuda={cuda})\n"
            "sys.modules['torch'] = SimpleNamespace(version=version, __version__='2')\n"
        )
        command = [sys.executable, "-c", stub + check[0], variant]
        assert subprocess.run(command, capture_output=True).returncode == status


def test_image_does_not_set_visible_gpus() -> None:
    """NVIDIA_VISIBLE_DEVICES=all in the image would expose all GPUs to pods that request none.

    This happens on nodes whose default container runtime is NVIDIA's.
    """
    assert not [rest for _, rest in instructions() if "NVIDIA_VISIBLE_DEVICES" in rest]
    assert ("ENV", "NVIDIA_DRIVER_CAPABILITIES=compute,utility") in stages()["ray"]
    # Ray's launcher uses NVIDIA's runtime but does not set the visible devices.
    docker = launcher("aws.yaml")["docker"]
    assert "-e NVIDIA_VISIBLE_DEVICES=all" in docker["worker_run_options"]
    assert not [option for option in docker["run_options"] if "NVIDIA" in option]


def installed(stage: str) -> set[str]:
    """Return the Debian and Python packages that a stage and its base stages install by name."""
    packages: set[str] = set()
    while stage in stages():
        for _, rest in stages()[stage]:
            for names in re.findall(r"(?:apt-get|pip) install ([^&;]*)", rest):
                words = names.split()
                packages |= {word for word in words if re.fullmatch(r"[a-z][\w.+-]*", word)}
        stage = stages()[stage][0][1].split(" AS ")[0]
    return packages


def test_launcher_image_has_the_programs_of_rays_launcher() -> None:
    built = dict(
        re.findall(
            r"--target (\S+) .*--tag (\S+)", (DEPLOY / "README.md").read_text(encoding="utf-8")
        )
    )
    used = {
        value.removeprefix("registry.example/")
        for file in sorted((DEPLOY / "vm").glob("*.yaml"))
        for key, value in launcher(file.name).get("docker", {}).items()
        if key in ("image", "head_image", "worker_image")
    }
    targets = {target for target, tag in built.items() if tag in used}
    assert targets and used <= set(built.values())
    for target in targets:
        assert {"openssh-client", "rsync", "boto3"} <= installed(target), target
    # The image of KubeRay and compose does not need these programs.
    assert not {"openssh-client", "rsync", "boto3"} & installed("ray")
    assert re.search(
        r"^boto3==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert "pip install -c ../../constraints.txt boto3" in (DEPLOY / "vm/README.md").read_text(
        encoding="utf-8"
    )


def test_requirements_of_the_server_are_pinned_once() -> None:
    pinned = {
        line.split("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    }
    lines = (DEPLOY / "mlflow/requirements.txt").read_text(encoding="utf-8").splitlines()
    for line in [line for line in lines if not line.startswith("#")]:
        name, _, version = line.partition("==")
        assert bool(version) != (re.sub(r"\[.*", "", name).lower() in pinned), line


@pytest.fixture(scope="module")
def setup() -> ModuleType:
    """Import deploy/mlflow/setup.py."""
    spec = spec_from_file_location("mlflow_setup", DEPLOY / "mlflow/setup.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bucket_is_created_once(setup: ModuleType) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environment = ENVIRONMENT | {"MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}"}
        assert setup.create_bucket(environment) == "created bucket mlflow"
        assert setup.create_bucket(environment) == "bucket mlflow exists"
    finally:
        server.stop()


class UserApi(http.server.BaseHTTPRequestHandler):
    """The two endpoints of MLflow's user API that setup.py calls."""

    passwords: dict[str, str]

    def do_GET(self) -> None:
        name = self.path.partition("?username=")[2]
        if not self.authenticated_user():
            self.respond(401)
        else:
            self.respond(200 if name in self.passwords else 404)

    def do_POST(self) -> None:
        user = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_admin = self.authenticated_user() == "admin"
        allowed = is_admin and self.path == "/api/2.0/mlflow/users/create"
        if allowed:
            self.passwords[user["username"]] = user["password"]
        self.respond(200 if allowed else 403)

    def authenticated_user(self) -> str | None:
        import base64

        name, _, password = (
            base64.b64decode(self.headers["Authorization"].removeprefix("Basic "))
            .decode()
            .partition(":")
        )
        return name if self.passwords.get(name) == password else None

    def respond(self, status: int) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mlflow() -> Iterator[tuple[str, dict[str, str]]]:
    """Serve the user API; yields its address and the passwords by user name."""
    passwords = {"admin": ENVIRONMENT["MLFLOW_AUTH_ADMIN_PASSWORD"]}
    handler = type("Handler", (UserApi,), {"passwords": passwords})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        yield f"http://127.0.0.1:{server.server_port}", passwords
        server.shutdown()


def test_user_is_created_once(setup: ModuleType, mlflow: tuple[str, dict[str, str]]) -> None:
    uri, passwords = mlflow
    environment = ENVIRONMENT | {"MLFLOW_TRACKING_URI": uri}
    assert setup.create_user(environment) == "created user tinynet"
    assert passwords["tinynet"] == ENVIRONMENT["MLFLOW_TRACKING_PASSWORD"]
    assert setup.create_user(environment) == "user tinynet exists"
    for change, message in (
        ({"MLFLOW_TRACKING_PASSWORD": "another"}, "with a different password"),
        ({"MLFLOW_AUTH_ADMIN_PASSWORD": "wrong"}, "returned status 401 for user admin"),
        ({"MLFLOW_TRACKING_USERNAME": "admin"}, "must not run as admin"),
    ):
        with pytest.raises(setup.SetupError, match=message):
            setup.create_user(environment | change)


def test_missing_server_is_retried_and_named_in_the_error(setup: ModuleType) -> None:
    for job in (setup.create_user, setup.create_bucket):
        environment = ENVIRONMENT | {
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:1",
            "AWS_MAX_ATTEMPTS": "1",
        }
        with pytest.raises(setup.SetupError, match=r"no response for 0 s: .*127\.0\.0\.1:1"):
            setup.run_with_retries(job, environment, timeout=0)
    with pytest.raises(setup.SetupError, match="MLFLOW_TRACKING_URI is not set"):
        setup.run_with_retries(setup.create_user, {})


def test_settings_of_the_server_are_the_same_in_image_and_manifests() -> None:
    from configparser import ConfigParser

    from tests.deploy.manifests import SETS, of_kind

    def read(text: str) -> dict[str, str]:
        parser = ConfigParser()
        parser.read_string(text)
        return dict(parser["mlflow"])

    shipped = read(Path(DEPLOY / "mlflow/auth.ini").read_text(encoding="utf-8"))
    assert shipped["auth_cache_ttl_seconds"] == "60"
    assert "password" not in shipped["database_uri"] and shipped["database_uri"].count(":") == 2
    for which in SETS:
        (config,) = [
            document
            for document in of_kind(which, "ConfigMap")
            if document["metadata"]["name"] == "mlflow-auth"
        ]
        assert read(config["data"]["auth.ini"]) == shipped
