"""The Dockerfile, as far as it can be read without an engine, and what its server runs beside MLflow."""

import http.server
import json
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

from tests.deploy.manifests import DEPLOY, ROOT, launcher

ENVIRONMENT = {
    "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:1",
    "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "MLFLOW_TRACKING_USERNAME": "tinynet",
    "MLFLOW_TRACKING_PASSWORD": "a password: of theirs",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "the admin's",
}


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [
        (word, rest) for word, _, rest in (line.partition(" ") for line in lines if line.strip())
    ]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            found[rest.split(" AS ")[1]] = [(word, rest)]
        elif found:
            found[list(found)[-1]].append((word, rest))
    return found


def test_bases_are_tagged_exactly_and_python_is_ours() -> None:
    (python,) = [
        rest.removeprefix("PYTHON=")
        for word, rest in instructions()
        if word == "ARG" and rest.startswith("PYTHON=")
    ]
    assert re.fullmatch(r"3\.11\.\d+-slim-bookworm", python)
    bases = [rest.split(" AS ")[0] for word, rest in instructions() if word == "FROM"]
    assert bases == ["python:${PYTHON}", "base", "base", "ray"]


def test_dependencies_are_installed_with_a_version_where_the_build_reads_it() -> None:
    """The layer before our source has no package: only the file from which hatch reads the version."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    path = project["tool"]["hatch"]["version"]["path"]
    assert f"echo '__version__ = \"0\"' > {path} " in text
    assert "__version__ = " in (ROOT / path).read_text(encoding="utf-8")


def test_every_source_is_there_and_reaches_the_builder() -> None:
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    sent = [line[1:] for line in ignore if line.startswith("!")]
    assert next(line for line in ignore if line and line[0] not in "#!") == "*"
    for word, rest in instructions():
        if word == "COPY":
            *sources, target = rest.split()
            assert target
            for source in sources:
                assert (ROOT / source).exists(), source
                assert any(source == kept or source.startswith(f"{kept}/") for kept in sent), source
        assert word != "ADD"
    assert all((ROOT / kept).exists() for kept in sent)


@pytest.mark.parametrize("stage", ["ray", "launcher", "mlflow"])
def test_an_image_is_not_roots(stage: str) -> None:
    users = [rest for word, rest in stages()[stage] if word == "USER"]
    assert users[-1:] == ["1000:1000"]
    words = [word for word, _ in stages()[stage]]
    after = words[len(words) - words[::-1].index("USER") :]
    assert not {"RUN", "COPY"} & set(after)


def test_no_secret_and_no_index_is_built_in() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert not re.search(r"https?://|TOKEN|PASSWORD|SECRET", text)
    installs = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    for rest in installs:
        assert "-c /opt/tinynet/constraints.txt" in rest or "--no-deps" in rest, rest


def test_torch_alone_comes_from_an_index_of_its_own_and_stays() -> None:
    """An index that has torch need not have what torch needs at our versions: pip would take it from there and find none."""
    layers = [rest for word, rest in stages()["ray"] if word == "RUN" and "pip install" in rest]
    (named,) = [rest for rest in layers if "--index-url" in rest]
    assert (
        'pip install --no-deps -c /opt/tinynet/constraints.txt --index-url "$TORCH_INDEX" torch torchvision ;;'
        in named
    )
    (others,) = [rest for rest in layers if "'.[search]'" in rest]
    assert layers.index(named) < layers.index(others)
    assert not re.search(r"--(upgrade|force-reinstall|no-deps)", others)
    check = re.findall(r"&& python -c '([^']+)' \"\$VARIANT\"$", others)
    for cuda, variant, status in (
        ("None", "cpu", 0),
        ("'13.0'", "cpu", 1),
        ("'13.0'", "cuda", 0),
        ("None", "cuda", 1),
    ):
        stand_in = f"import sys, types; sys.modules['torch'] = types.SimpleNamespace(version=types.SimpleNamespace(cuda={cuda}), __version__='2')"
        assert (
            subprocess.run(
                [sys.executable, "-c", f"{stand_in}\n{check[0]}", variant], capture_output=True
            ).returncode
            == status
        )


def test_gpus_are_shown_by_whoever_gives_them() -> None:
    """Where NVIDIA's runtime is the default one, an image that asks for every GPU gets it, in a pod without any too."""
    assert not [rest for _, rest in instructions() if "NVIDIA_VISIBLE_DEVICES" in rest]
    assert ("ENV", "NVIDIA_DRIVER_CAPABILITIES=compute,utility") in stages()["ray"]
    # Ray's launcher takes the runtime and names no device.
    docker = launcher("aws.yaml")["docker"]
    assert "-e NVIDIA_VISIBLE_DEVICES=all" in docker["worker_run_options"]
    assert not [option for option in docker["run_options"] if "NVIDIA" in option]


def installed(stage: str) -> set[str]:
    """What a stage and those it is built on install by name, as Debian's packages and as Python's."""
    found: set[str] = set()
    while stage in stages():
        for _, rest in stages()[stage]:
            for names in re.findall(r"(?:apt-get|pip) install ([^&;]*)", rest):
                found |= {name for name in names.split() if re.fullmatch(r"[a-z][\w.+-]*", name)}
        stage = stages()[stage][0][1].split(" AS ")[0]
    return found


def test_a_launchers_image_holds_what_rays_launcher_runs_in_it() -> None:
    built = dict(
        re.findall(
            r"--target (\S+) .*--tag (\S+)", (DEPLOY / "README.md").read_text(encoding="utf-8")
        )
    )
    named = {
        value.removeprefix("registry.example/")
        for file in sorted((DEPLOY / "vm").glob("*.yaml"))
        for key, value in launcher(file.name).get("docker", {}).items()
        if key in ("image", "head_image", "worker_image")
    }
    targets = {target for target, tag in built.items() if tag in named}
    assert targets and named <= set(built.values())
    for target in targets:
        assert {"openssh-client", "rsync", "boto3"} <= installed(target), target
    # Not in the images of KubeRay and compose, which have no use for them.
    assert not {"openssh-client", "rsync", "boto3"} & installed("ray")
    assert re.search(
        r"^boto3==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert "pip install -c ../../constraints.txt boto3" in (DEPLOY / "vm/README.md").read_text(
        encoding="utf-8"
    )


def test_what_the_server_needs_is_pinned_here_or_in_the_constraints() -> None:
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
    spec = spec_from_file_location("mlflow_setup", DEPLOY / "mlflow/setup.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_bucket_is_made_once(setup: ModuleType) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environment = ENVIRONMENT | {"MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}"}
        assert setup.make_bucket(environment) == "bucket mlflow made"
        assert setup.make_bucket(environment) == "bucket mlflow is there"
    finally:
        server.stop()


class Users(http.server.BaseHTTPRequestHandler):
    """MLflow's two addresses of users, as far as setup.py uses them."""

    passwords: dict[str, str]

    def do_GET(self) -> None:
        name = self.path.partition("?username=")[2]
        self.answer(401 if not self.known() else 200 if name in self.passwords else 404)

    def do_POST(self) -> None:
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        allowed = self.known() == "admin" and self.path == "/api/2.0/mlflow/users/create"
        if allowed:
            self.passwords[wanted["username"]] = wanted["password"]
        self.answer(200 if allowed else 403)

    def known(self) -> str | None:
        import base64

        name, _, password = (
            base64.b64decode(self.headers["Authorization"].removeprefix("Basic "))
            .decode()
            .partition(":")
        )
        return name if self.passwords.get(name) == password else None

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mlflow() -> Iterator[tuple[str, dict[str, str]]]:
    passwords = {"admin": ENVIRONMENT["MLFLOW_AUTH_ADMIN_PASSWORD"]}
    handler = type("Handler", (Users,), {"passwords": passwords})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        yield f"http://127.0.0.1:{server.server_port}", passwords
        server.shutdown()


def test_the_user_is_made_once(setup: ModuleType, mlflow: tuple[str, dict[str, str]]) -> None:
    uri, passwords = mlflow
    environment = ENVIRONMENT | {"MLFLOW_TRACKING_URI": uri}
    assert setup.make_user(environment) == "user tinynet made"
    assert passwords["tinynet"] == ENVIRONMENT["MLFLOW_TRACKING_PASSWORD"]
    assert setup.make_user(environment) == "user tinynet is there"
    for change, said in (
        ({"MLFLOW_TRACKING_PASSWORD": "another"}, "with another password"),
        ({"MLFLOW_AUTH_ADMIN_PASSWORD": "wrong"}, "answers 401 to admin"),
        ({"MLFLOW_TRACKING_USERNAME": "admin"}, "must not be admin"),
    ):
        with pytest.raises(setup.SetupError, match=said):
            setup.make_user(environment | change)


def test_a_server_that_is_not_there_is_waited_for_and_named(setup: ModuleType) -> None:
    for job in (setup.make_user, setup.make_bucket):
        environment = ENVIRONMENT | {
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:1",
            "AWS_MAX_ATTEMPTS": "1",
        }
        with pytest.raises(setup.SetupError, match=r"no answer for 0 s: .*127\.0\.0\.1:1"):
            setup.persistently(job, environment, patience=0)
    with pytest.raises(setup.SetupError, match="MLFLOW_TRACKING_URI is not set"):
        setup.persistently(setup.make_user, {})


def test_the_servers_settings_are_the_same_in_the_image_and_in_the_manifests() -> None:
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
            found
            for found in of_kind(which, "ConfigMap")
            if found["metadata"]["name"] == "mlflow-auth"
        ]
        assert read(config["data"]["auth.ini"]) == shipped
