"""Searches as jobs of a real cluster: looked at, queued, followed, stopped, resumed, and what is refused before that."""

import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from search_spaces import RequestError
from tests.search.helpers import results, tiny_arguments, tiny_config
from tests.tracking.servers import playing
from tinynet_search.cli.job_entrypoint import request as requested
from tinynet_search.cli.main import run
from tinynet_search.cluster import placement, preflight
from tinynet_search.config import validate
from tinynet_search.jobs import connection, submit_search
from tinynet_search.jobs import runtime_env as environments
from tinynet_search.jobs.connection import connect, find_token
from tinynet_search.jobs.submission import order_search, order_train
from tinynet_search.jobs.watching import JobRow, Jobs
from tinynet_search.plan.preview import preview
from tinynet_search.train.request import TrainRequest

OWN_SPACE = """
from search_spaces import get_space
from search_spaces.efficientnet import EfficientNetSpace


class Mine(EfficientNetSpace):
    def __init__(self):
        super().__init__(get_space("efficientnet_mini").table)
"""


@pytest.fixture(autouse=True)
def laptop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A user with no token of their own, where the test has no cluster; the tests' clusters ask for the one in the environment."""
    monkeypatch.delenv(connection.VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if not request.node.get_closest_marker("ray"):
        for name in (connection.TOKEN, "RAY_AUTH_MODE"):
            monkeypatch.delenv(name, raising=False)


@pytest.fixture
def head(ray_cluster: Any) -> str:
    return f"http://{ray_cluster.head_node.address_info['webui_url']}"


def wait_for(jobs: Jobs, name: str, *states: str) -> JobRow:
    end = time.monotonic() + 180
    while (found := jobs.find(name)).status not in states:
        assert time.monotonic() < end, jobs.logs(name)
        time.sleep(0.2)
    return found


@pytest.mark.ray
def test_submitted_followed_and_submitted_again(
    head: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["submit", *tiny_arguments(tmp_path, trials=3), "--address", head, "--yes"]
    assert run(arguments) == 0
    shown = capfd.readouterr()
    assert "job demo-1 at http://" in shown.err
    assert "WebSocket" not in shown.err
    assert "Frontier" in shown.out  # what the job printed
    assert len(results(tmp_path)) == 3
    assert run([*arguments, "--json"]) == 0
    told = capfd.readouterr()
    second = json.loads(told.out)  # what the job says stays out of the document
    assert "Frontier" in told.err
    assert (second["id"], second["name"]) == ("demo-2", "demo")
    seen = second["findings"]
    assert (seen["problems"], seen["at_once"], len(seen["nodes"])) == ([], 2, 3)
    assert [node["driver"] for node in seen["nodes"]].count(True) == 1
    assert all(candidate["done"] for candidate in seen["plan"]["candidates"])
    assert run(["jobs", "list", "--address", head, "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)
    mine = [job for job in listed if job["storage"] == f"{tmp_path}/demo"]
    assert [(job["id"], job["kind"], job["status"], job["exit_code"]) for job in mine] == [
        ("demo-1", "search", "SUCCEEDED", 0),
        ("demo-2", "search", "SUCCEEDED", 0),
    ]
    assert run(["jobs", "logs", "demo-2", "--address", head]) == 0
    assert capfd.readouterr().out.count("Frontier\n") == 1


@pytest.mark.ray
def test_stopped_and_resumed(head: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A stop commits checkpoints; the same search cannot run twice at once; a resumed job goes on from there."""
    config = tiny_config(
        tmp_path, "recipe.epochs=40", "data.train=960", "search.name=stopped", trials=2
    )
    job, jobs = submit_search(config, head, check=False), Jobs(head)
    end = time.monotonic() + 120
    while not list(tmp_path.glob("stopped/trials/*/epoch-*")):
        assert time.monotonic() < end, jobs.logs(job.id)
        time.sleep(0.1)
    with pytest.raises(
        RequestError, match=rf"search stopped is running already as job {job.id}: tinynet jobs logs"
    ):
        submit_search(config, head, check=False)
    with pytest.raises(RequestError, match="nothing to resume"):
        jobs.resume("stopped")
    at = time.time()
    assert run(["jobs", "stop", "stopped", "--address", head]) == 0
    assert f"job {job.id} stopped: tinynet jobs resume" in capfd.readouterr().err
    assert jobs.find(job.id).status == "STOPPED"
    assert "stopping once every training has committed a checkpoint" in jobs.logs(job.id)
    newest: dict[str, float] = {}
    for file in tmp_path.glob("stopped/trials/*/epoch-*/progress.json"):
        newest[file.parts[-3]] = max(newest.get(file.parts[-3], 0.0), file.stat().st_mtime)
    assert newest
    assert all(written > at for written in newest.values())
    with pytest.raises(RequestError, match="has ended already"):
        jobs.stop(job.id)
    resumed = jobs.resume(job.id)
    assert resumed.id == "stopped-2"
    wait_for(jobs, resumed.id, "RUNNING")
    assert jobs.stop("stopped").id == resumed.id


@pytest.mark.ray
def test_a_space_that_only_the_laptop_has(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent with the job, and found on every node; what was sent has to be sent again."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "only_here.py").write_text(OWN_SPACE)
    monkeypatch.syspath_prepend(str(folder))
    config = tiny_config(tmp_path, "space.name=only_here:Mine", "search.name=own", trials=2)
    with pytest.raises(RequestError, match="only_here"):
        submit_search(config, head)
    job = submit_search(config, head, working_dir=str(folder))
    jobs = Jobs(head)
    assert wait_for(jobs, job.id, "SUCCEEDED", "FAILED").status == "SUCCEEDED", jobs.logs(job.id)
    assert len(results(tmp_path, "own")) == 2
    with pytest.raises(RequestError, match="was sent with --working-dir"):
        jobs.resume(job.id)


@pytest.mark.ray
def test_one_training_is_sent_the_same_way(
    head: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--rdw",
        "0.4,0.5,0.4",
        "--space",
        "efficientnet_mini",
        "--data",
        "petals",
        "--epochs",
        "2",
        "--name",
        "sent",
    ]
    small = [
        "--set",
        "data.train=96",
        "--set",
        "data.val=48",
        "--set",
        "recipe.batch=32",
        "--set",
        "recipe.micro_batch=16",
    ]
    assert (
        run(["submit", "train", *arguments, *small, "--storage", str(tmp_path), "--address", head])
        == 0
    ), capfd.readouterr().err
    shown = capfd.readouterr()
    assert "job sent-1 at http://" in shown.err
    assert "top-1 %" in shown.out
    (result,) = results(tmp_path, "sent").values()
    assert (result["status"], len(result["epochs"])) == ("finished", 2)
    job = Jobs(head).find("sent")
    assert (job.kind, job.status) == ("train", "SUCCEEDED")


@pytest.mark.ray
def test_what_the_cluster_cannot_see_is_named(head: str, tmp_path: Path) -> None:
    """Everything at once, and nothing is queued or written."""
    nowhere = tmp_path / "laptop" / "only"
    settings = (
        "data.name=imagefolder",
        f"data.path={tmp_path}/no-images",
        "tracking.uri=http://127.0.0.1:9",
        "search.name=blind",
    )
    with pytest.raises(RequestError) as refused:
        submit_search(tiny_config(nowhere, *settings, trials=2), head)
    said = str(refused.value)
    assert "\n" not in said
    for part in (
        "cannot run search blind",
        "no-images",
        f"storage {nowhere}: there is no such folder",
        "MLflow at http://127.0.0.1:9 does not answer",
    ):
        assert part in said
    assert not nowhere.exists()
    assert not [job for job in Jobs(head).all() if job.name == "blind"]
    roomless = tiny_config(tmp_path, "scaling.gpus=1", "search.name=roomless", trials=2)
    with pytest.raises(
        RequestError, match="no room for a trial of 1 x 1 CPU and 1 GPU on nodes of"
    ):
        submit_search(roomless, head)
    assert not (tmp_path / "roomless").exists()


@pytest.mark.ray
def test_the_cluster_lets_nobody_in_without_its_token(
    head: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "SECRETWORD" * 3)
    assert run(["jobs", "list", "--address", head]) == 2
    wrong = capfd.readouterr().err
    assert "refuses this token" in wrong
    assert "SECRETWORD" not in wrong
    # Ray remembers a process's token, so none is given by another process.
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE")
    }
    command = [sys.executable, "-m", "tinynet_search.cli.main", "jobs", "list", "--address", head]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "asks for a token" in done.stderr


class Cluster(BaseHTTPRequestHandler):
    """A dashboard of another version, and one that asks for a token."""

    version, token = "2.58.0", ""

    def do_GET(self) -> None:
        given = self.headers.get("Authorization")
        wanted = f"Bearer {self.token}"
        status = 200 if not self.token or given == wanted else 403 if given else 401
        body = json.dumps(
            {"version": "4", "ray_version": self.version, "ray_commit": "x", "session_name": "x"}
        ).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body if status == 200 else b"Unauthorized")


@pytest.fixture
def other() -> Iterator[tuple[str, type[Cluster]]]:
    kind = type("Other", (Cluster,), {})
    with playing(kind) as url:
        yield url, kind


def test_another_version_of_ray_is_named(
    other: tuple[str, type[Cluster]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "RAY_AUTH_TOKEN", "any"
    )  # Ray remembers whether it wants one from when it was imported
    url, kind = other
    kind.version = "2.40.0"
    with pytest.raises(
        RequestError,
        match=r"runs Ray 2\.40\.0, this machine \d+\.\d+\.\d+: pip install 'ray\[default\]==2\.40\.0' here, or",
    ):
        connect(url)


@pytest.mark.parametrize("name", ["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])
def test_the_address_that_is_given_counts(
    other: tuple[str, type[Cluster]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Ray's own client would go to the other cluster, with the token."""
    monkeypatch.setenv(
        "RAY_AUTH_TOKEN", "any"
    )  # Ray remembers whether it wants one from when it was imported
    for elsewhere in ("http://127.0.0.1:9", "127.0.0.1:9"):
        monkeypatch.setenv(name, elsewhere)
        assert connect(other[0]).get_address() == other[0]
        assert os.environ[name] == elsewhere


def test_a_missing_and_a_wrong_token_are_told_apart(
    other: tuple[str, type[Cluster]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, kind = other
    kind.token = "right"
    with pytest.raises(
        RequestError,
        match=r"asks for a token: put it in RAY_AUTH_TOKEN, in a file that RAY_AUTH_TOKEN_PATH names",
    ):
        connect(url)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "SECRETWORD")
    with pytest.raises(RequestError, match="refuses this token") as refused:
        connect(url)
    assert "SECRETWORD" not in str(refused.value)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / "token").write_text("right\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert connect(url).get_address() == url


@pytest.mark.quick
def test_tokens_are_found_in_rays_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text(" home\n")
    assert find_token() == "home"
    (tmp_path / "named").write_text("named")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    assert find_token() == "named"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "given")
    assert find_token() == "given"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    for text, said in (("", "is none"), ("a\nb", "is none")):
        (tmp_path / "named").write_text(text)
        with pytest.raises(RequestError, match=said):
            find_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "SECRET\nWORD")
    with pytest.raises(RequestError, match="RAY_AUTH_TOKEN is none") as refused:
        find_token()
    assert "WORD" not in str(refused.value)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "gone"))
    with pytest.raises(RequestError, match="names no readable token"):
        find_token()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (None, "give --address http://HEAD:8265"),
        ("127.0.0.1:6379", "no address of a Ray dashboard"),
        ("ray://head:10001", "no address of a Ray dashboard"),
        ("http://", "no address of a Ray dashboard"),
        ("http://head:99999", "no address of a Ray dashboard"),
        ("http://user:SECRETWORD@head:8265", "carries credentials"),
        ("http://127.0.0.1:9", "no cluster answers at http://127.0.0.1:9 (Connection refused)"),
        (
            "http://no-such-host.invalid:8265",
            "no cluster answers at http://no-such-host.invalid:8265",
        ),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line(
    address: str | None, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ["--address", address] if address else []
    for verb in (
        ["submit", "--preset", "demo", "--storage", str(tmp_path), "--yes"],
        ["jobs", "list"],
    ):
        assert run([*verb, *given]) == 2
        shown = capsys.readouterr()
        assert said in shown.err
        assert "SECRETWORD" not in shown.err
        assert shown.err.count("\n") == 1
        assert shown.out == ""


@pytest.mark.quick
def test_what_means_this_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        RequestError, match=r"storage\.path 'searches' means a folder of this machine"
    ):
        order_search(tiny_config(Path("searches")), None)
    with pytest.raises(RequestError, match=r"data\.path 'images' means a folder of this machine"):
        order_search(tiny_config(tmp_path, "data.name=imagefolder", "data.path=images"), None)
    with pytest.raises(RequestError, match="MLFLOW_TRACKING_USERNAME") as refused:
        order_search(tiny_config(tmp_path), "http://user:SECRETWORD@mlflow:5000")
    assert "SECRETWORD" not in str(refused.value)
    with pytest.raises(RequestError, match="means a folder of this machine"):
        order_train(TrainRequest(network="tinynet_e", data="petals"))
    place = str(tmp_path)
    secrets: list[tuple[str, str | None, tuple[str, ...]]] = [
        ("s3://KEY:SECRETWORD@bucket/x", None, ()),
        ("s3://bucket/x?secret_key=SECRETWORD", None, ()),
        (place, "http://mlflow:5000", ("tracking.uri=http://u:SECRETWORD@m:5000",)),
        (place, "postgresql://h/db?user=u&password=SECRETWORD", ()),
    ]
    for storage, tracking, settings in secrets:
        with pytest.raises(RequestError, match="credentials") as refused:
            order_search(tiny_config(storage, *settings), tracking)
        assert "SECRETWORD" not in str(refused.value)
        with pytest.raises(RequestError, match="credentials") as refused:
            order_train(
                TrainRequest(
                    network="tinynet_e",
                    data="petals",
                    storage=storage,
                    tracking=tracking,
                    settings=settings,
                )
            )
        assert "SECRETWORD" not in str(refused.value)
    with pytest.raises(RequestError, match="no_such_net"):
        order_train(TrainRequest(network="no_such_net", data="petals", storage=place))
    with pytest.raises(RequestError, match="nonsense"):
        order_train(
            TrainRequest(
                network="tinynet_e", data="petals", storage=place, settings=("recipe.nonsense=3",)
            )
        )


@pytest.mark.quick
def test_an_order_says_everything_and_nothing_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    order = order_search(
        tiny_config(tmp_path, "run.address=1.2.3.4:6379", trials=4), None, ["failed"]
    )
    assert order.arguments == (
        "search",
        "{config}",
        "--tracking",
        "http://mlflow:5000",
        "--retry",
        "failed",
    )
    assert "address" not in order.values["run"]
    assert "tracking" not in order.values
    auto = tiny_config(tmp_path, "scaling.auto=true")
    there = validate(order_search(auto, None).values, "there")
    assert (there, there.scaling.model_fields_set) == (auto, {"auto"})
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert (
        "--tracking" not in order_search(auto, None).arguments
    )  # then it is the one that the cluster's nodes name
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    metadata = order.metadata(["wheel"])
    assert all(isinstance(value, str) for value in metadata.values())
    environment = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"metadata": metadata})}
    assert requested(environment)["config"]["search"]["trials"] == 4
    train = order_train(TrainRequest(c=0.5, data="petals", epochs=3, storage=str(tmp_path)))
    assert train.arguments == (
        "train",
        "{config}",
        "--c",
        "0.5",
        "--data",
        "petals",
        "--tracking",
        "http://mlflow:5000",
    )
    assert (train.values["recipe"], train.values["run"], train.name) == (
        {"epochs": 3},
        {"address": "auto"},
        "c0.5",
    )
    assert train.values["scaling"] == {"auto": True}
    assert train.seen is not None
    assert validate(train.seen, "there").space.name == "efficientnet_b0"


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{}",
        '{"metadata": {"tinynet.request": "[]"}}',
        '{"metadata": {"tinynet.request": "{}"}}',
    ],
)
def test_a_process_that_is_no_job_says_so(text: str | None) -> None:
    with pytest.raises(RequestError, match="no job of tinynet submit"):
        requested({} if text is None else {"RAY_JOB_CONFIG_JSON_ENV_VAR": text})


def test_shipments_are_looked_at_before_they_are_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(working_dir: Path | None, wheel: Path | None, said: str) -> None:
        with (
            pytest.raises(RequestError, match=said),
            environments.runtime_env(working_dir and str(working_dir), wheel and str(wheel)),
        ):
            pytest.fail("it was taken")

    refused(tmp_path / "none", None, "is no folder")
    (tmp_path / "big").write_bytes(bytes(2000))
    monkeypatch.setattr(environments, "LARGEST", 1000)
    refused(tmp_path, None, "give a folder of code, or name in its .rayignore")
    (tmp_path / ".rayignore").write_text("big\n")
    with environments.runtime_env(str(tmp_path), None) as env:
        assert env.get("working_dir") == str(tmp_path)
    for name in ("x.whl", "x.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(
                "other/__init__.py" if name == "x.whl" else "tinynet_search/__init__.py", ""
            )
        refused(None, tmp_path / name, "is no wheel of tinynet-search")
    refused(None, tmp_path / "none.whl", "cannot be read")


@pytest.mark.quick
def test_a_wheel_travels_as_its_folders(tmp_path: Path) -> None:
    """Ray would install the file with all that it depends on."""
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        for name in (
            "tinynet_search/__init__.py",
            "trainables/__init__.py",
            "tinynet_search-9.dist-info/METADATA",
        ):
            archive.writestr(name, "")
    with environments.runtime_env(None, str(tmp_path / "x.whl")) as env:
        folders = [Path(folder) for folder in env.get("py_modules", [])]
        assert [folder.name for folder in folders] == [
            "tinynet_search",
            "tinynet_search-9.dist-info",
            "trainables",
        ]
        assert all(folder.is_dir() for folder in folders)
    assert not any(folder.exists() for folder in folders)


def test_options_that_submit_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = ["--address", "http://127.0.0.1:9", "--storage", str(tmp_path), "--yes"]
    assert run(["submit", "--preset", "demo", "--epoch", "3", *far]) == 2
    assert "knows no '--epoch'" in capsys.readouterr().err
    assert run(["submit", "train", "tinynet_e", "--data", "petals", "--what", *far]) == 2
    assert "No such option: --what" in capsys.readouterr().err
    assert run(["submit", "train", "tinynet_e", "--weights", "x.pth", *far]) == 2
    assert "are for tinynet train" in capsys.readouterr().err
    assert (
        run(["submit", "train", "--c", "0.5", "--formula", "mine.json", "--data", "petals", *far])
        == 2
    )
    assert "is a file of this machine" in capsys.readouterr().err


def test_a_search_is_submitted_with_the_options_of_a_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = ["--address", "http://127.0.0.1:9", "--storage", str(tmp_path), "--yes"]
    for options, said in (
        (["--epochs", "3", "--trial-timeout", "30m"], "no cluster answers"),
        (["--continue", "frontier", "--epochs", "30", "--anew"], "no cluster answers"),
        (["--anew"], "--anew says how --continue frontier trains"),
        (["--trial-timeout", "soon"], "'soon' is no time"),
        (["--dry-run"], "knows no '--dry-run'"),
    ):
        assert run(["submit", "--preset", "demo", *options, *far]) == 2
        assert said in capsys.readouterr().err
    assert (
        run(["submit", "train", "tinynet_e", "--data", "petals", "--trial-timeout", "30m", *far])
        == 2
    )
    assert "leave out --preset, --trials, --trial-timeout" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "auto"),
    [("scaling.loader_workers=7", True), ("scaling.gpus=1", None), ("scaling.workers=1", None)],
)
def test_a_training_takes_a_gpu_unless_something_else_is_said(
    tmp_path: Path, setting: str, auto: bool | None
) -> None:
    sent = order_train(
        TrainRequest(network="tinynet_e", data="petals", storage=str(tmp_path), settings=(setting,))
    )
    assert sent.values["scaling"].get("auto") == auto


@pytest.mark.quick
def test_of_python_two_numbers_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "versions", lambda: {"python": "3.11.7", "ray": "2.58.0"})
    assert preflight._differing({"python": "3.11.99", "ray": "2.58.0"}) == []
    theirs = {"python": "3.12.7", "ray": "2.58.1"}
    assert preflight._differing(theirs) == [
        "python 3.12.7, and 3.11.7 on the driver's",
        "ray 2.58.1, and 2.58.0 on the driver's",
    ]


@pytest.mark.parametrize(
    ("nodes", "settings", "at_once", "note"),
    [
        ([], ("run.concurrency=4",), 4, "no trial fits on the nodes there are"),
        ([placement.Nodes({"CPU": 8.0, "GPU": 1.0})], ("run.concurrency=4",), 4, None),
        (
            [placement.Nodes({"CPU": 8.0, "GPU": 1.0})],
            (),
            1,
            "1 at once to the end, however the cluster grows",
        ),
    ],
)
def test_a_cluster_that_grows_is_estimated_as_it_will_be(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[placement.Nodes],
    settings: tuple[str, ...],
    at_once: int,
    note: str | None,
) -> None:
    monkeypatch.setattr(preflight, "grown", lambda: nodes)
    own = ("run.wait_for_nodes=30m", "scaling.gpus=1", *settings)
    config = tiny_config(tmp_path, *own, at_once=None)
    inputs = config.resolve()
    findings = preflight.Findings({}, plan=preview(inputs))
    request = placement.ClusterRequest.of(config, inputs)
    preflight._check_room(request, inputs, findings, "a100")
    assert findings.at_once == at_once
    assert (
        findings.estimate
        and findings.estimate.unit == "GPU-hours"
        and findings.estimate.worker_hours > 0
    )
    assert [text.startswith(note or "") for text in findings.notes] == [True] * (note is not None)


def test_nobody_to_agree_is_no_agreement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(
            [
                "submit",
                "--preset",
                "demo",
                "--storage",
                str(tmp_path),
                "--address",
                "http://127.0.0.1:9",
            ]
        )
        == 2
    )
    assert "add --yes" in capsys.readouterr().err
