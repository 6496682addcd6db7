"""Tests of jobs on a real cluster: check, submit, follow, stop and resume, and their errors."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from search_spaces import RequestError
from tests.search.helpers import results, tiny_arguments, tiny_config
from tests.tracking.servers import serving
from tinynet_search.cli.job_entrypoint import lasting_directory
from tinynet_search.cli.job_entrypoint import request as requested
from tinynet_search.cli.main import run
from tinynet_search.cluster import placement, preflight
from tinynet_search.config import validate
from tinynet_search.jobs import connection, submit_search
from tinynet_search.jobs import runtime_env as environments
from tinynet_search.jobs.command import search_command, train_command
from tinynet_search.jobs.connection import connect, find_token
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
def user_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The environment of a user without an address and a token.

    Tests on the shared cluster keep the token in the environment, which that cluster requires.
    """
    monkeypatch.delenv(connection.ADDRESS_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if not request.node.get_closest_marker("ray"):
        for name in (connection.TOKEN_VARIABLE, "RAY_AUTH_MODE"):
            monkeypatch.delenv(name, raising=False)


@pytest.fixture
def head(ray_cluster: Any) -> str:
    return f"http://{ray_cluster.head_node.address_info['webui_url']}"


def wait_for(jobs: Jobs, name: str, *states: str, storage: str | None = None) -> JobRow:
    end = time.monotonic() + 180
    while (row := jobs.find(name, storage=storage)).status not in states:
        assert time.monotonic() < end, jobs.logs(name, storage=storage)
        time.sleep(0.2)
    return row


@pytest.mark.ray
def test_submit_twice_and_list(
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
    captured = capfd.readouterr()
    second = json.loads(captured.out)  # the document does not contain the output of the job
    assert "Frontier" in captured.err
    assert (second["id"], second["name"]) == ("demo-2", "demo")
    findings = second["findings"]
    assert (findings["problems"], findings["at_once"], len(findings["nodes"])) == ([], 2, 3)
    assert [node["driver"] for node in findings["nodes"]].count(True) == 1
    assert all(candidate["done"] for candidate in findings["plan"]["candidates"])
    assert run(["jobs", "list", "--address", head, "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)
    own = [job for job in listed if job["storage"] == f"{tmp_path}/demo"]
    assert [(job["id"], job["kind"], job["status"], job["exit_code"]) for job in own] == [
        ("demo-1", "search", "SUCCEEDED", 0),
        ("demo-2", "search", "SUCCEEDED", 0),
    ]
    assert run(["jobs", "logs", "demo-2", "--address", head]) == 0
    assert capfd.readouterr().out.count("Frontier\n") == 1


@pytest.mark.ray
def test_stop_and_resume(head: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A stop commits checkpoints, from which a resumed job continues.

    The same search cannot run twice concurrently.
    """
    config = tiny_config(
        tmp_path, "recipe.epochs=40", "data.train=960", "search.name=stopped", trials=2
    )
    job, jobs = submit_search(config, head, check=False), Jobs(head)
    end = time.monotonic() + 120
    while not list(tmp_path.glob("stopped/trials/*/epoch-*")):
        assert time.monotonic() < end, jobs.logs(job.id)
        time.sleep(0.1)
    with pytest.raises(
        RequestError,
        match=rf"search stopped is already running as job {job.id} of \w+: follow it with",
    ):
        submit_search(config, head, check=False)
    with pytest.raises(RequestError, match="nothing to resume"):
        jobs.resume("stopped")
    stop_time = time.time()
    assert run(["jobs", "stop", "stopped", "--address", head]) == 0
    resume = f"tinynet jobs resume {job.id} --address {head}"
    assert capfd.readouterr().err.rstrip().endswith(resume)
    assert jobs.find(job.id).status == "STOPPED"
    # As after a local search that SIGTERM stopped: a script must not submit it again.
    assert run(["jobs", "logs", job.id, "--follow", "--address", head]) == 143
    assert "stopping once every training has committed a checkpoint" in jobs.logs(job.id)
    newest: dict[str, float] = {}
    for file in tmp_path.glob("stopped/trials/*/epoch-*/progress.json"):
        newest[file.parts[-3]] = max(newest.get(file.parts[-3], 0.0), file.stat().st_mtime)
    assert newest
    assert all(written > stop_time for written in newest.values())
    with pytest.raises(RequestError, match="has already ended"):
        jobs.stop(job.id)
    resumed = jobs.resume(job.id)
    assert resumed.id == "stopped-2"
    wait_for(jobs, resumed.id, "RUNNING")
    assert jobs.stop("stopped").id == resumed.id


@pytest.mark.ray
def test_two_searches_of_one_name(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two owners with two storages: every command wants a choice, and acts on the chosen one."""
    jobs, folders = Jobs(head), {"ann": tmp_path / "a", "bob": tmp_path / "b"}
    for owner, folder in folders.items():
        monkeypatch.setenv("TINYNET_OWNER", owner)
        config = tiny_config(
            folder, "recipe.epochs=40", "data.train=960", "search.name=shared", trials=2
        )
        assert submit_search(config, head, check=False).name == "shared"
    monkeypatch.setenv("TINYNET_OWNER", "carol")
    message = (
        rf"tinynet: 'shared' is ambiguous at {head}: "
        rf"shared-1 \(search, owner ann, storage {folders['ann']}/shared\), "
        rf"shared-2 \(search, owner bob, storage {folders['bob']}/shared\); "
        r"choose one with --owner, --storage or its id\n"
    )
    for verb in ("status", "logs", "stop", "resume"):
        assert run(["jobs", verb, "shared", "--address", head]) == 2
        assert re.fullmatch(message, capfd.readouterr().err)
    end = time.monotonic() + 120
    plans = {owner: folder / "shared" / "plan.json" for owner, folder in folders.items()}
    while not all(plan.exists() for plan in plans.values()):
        assert time.monotonic() < end, jobs.logs("shared-1") + jobs.logs("shared-2")
        time.sleep(0.2)
    assert run(["jobs", "status", "shared", "--owner", "ann", "--address", head]) == 0
    assert re.search(r"job +shared-1\nowner +ann\n", capfd.readouterr().out)
    assert jobs.find("shared", storage=str(folders["bob"])).id == "shared-2"
    assert jobs.find("shared", storage=f"{folders['ann']}/shared/").id == "shared-1"
    monkeypatch.chdir(tmp_path)
    for storage in ("b", "./b/", "a/../b/shared"):
        assert jobs.find("shared", storage=storage).id == "shared-2"
    with pytest.raises(
        RequestError,
        match=r"no job 'shared' of owner ann with storage .*/b at .*: "
        r"the jobs of that name are shared-1 \(search",
    ):
        jobs.find("shared", owner="ann", storage=str(folders["bob"]))
    assert run(["jobs", "list", "--address", head]) == 0
    assert re.search(r"\nshared-1 +ann +search +running.*\nshared-2 +bob ", capfd.readouterr().out)
    assert run(["jobs", "stop", "shared", "--owner", "bob", "--address", head]) == 0
    assert [jobs.find(job).status for job in ("shared-1", "shared-2")] == ["RUNNING", "STOPPED"]
    assert jobs.stop("shared", storage=str(folders["ann"])).id == "shared-1"
    # The cluster stores the owner of the machine that submitted, not its own login name.
    for owner, plan in plans.items():
        assert json.loads(plan.read_text())["owner"] == owner
    # The jobs page of Ray's dashboard shows this key as the name.
    names = {
        row["submission_id"]: (row["metadata"] or {}).get("job_name")
        for row in dashboard_jobs(head)
    }
    assert (names["shared-1"], names["shared-2"]) == ("shared", "shared")


def dashboard_jobs(head: str) -> list[dict[str, Any]]:
    """The rows of the jobs page of Ray's dashboard."""
    headers = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(f"{head}/api/jobs/", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


@pytest.mark.ray
def test_ids_and_names_that_coincide(head: str, tmp_path: Path) -> None:
    """A search is named as the id of another job: the commands want a choice, and ids skip it."""
    jobs = Jobs(head)

    def submitted(folder: Path, name: str) -> str:
        config = tiny_config(folder, f"search.name={name}", trials=1)
        return submit_search(config, head, check=False).id

    assert submitted(tmp_path, "twin-1") == "twin-1-1"
    assert submitted(tmp_path, "twin") == "twin-2"  # twin-1 is the name of a search
    assert submitted(tmp_path, "twin-2") == "twin-2-1"
    with pytest.raises(RequestError, match="'twin-2' is ambiguous"):
        jobs.find("twin-2")
    assert jobs.find("twin-2", storage=f"{tmp_path}/twin").id == "twin-2"
    assert jobs.find("twin-2", storage=f"{tmp_path}/twin-2").id == "twin-2-1"
    for job in jobs.all():
        if job.name.startswith("twin"):
            wait_for(jobs, job.id, "SUCCEEDED", storage=job.storage)


@pytest.mark.ray
def test_metadata_of_another_program(head: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Any client of the cluster may write it: it is printed without control characters."""
    from ray.job_submission import JobSubmissionClient

    metadata = {
        "tinynet.request": "{}",
        "tinynet.kind": "search",
        "tinynet.name": "odd",
        "tinynet.owner": "eve\x1b[31m",
    }
    client = JobSubmissionClient(head)
    for number in (1, 2):
        storage = {"tinynet.storage": f"/{number}"}
        job = client.submit_job(
            entrypoint="true", submission_id=f"odd-{number}", metadata={**metadata, **storage}
        )
        wait_for(Jobs(head), job, "SUCCEEDED")
    for arguments, code in (
        (("list",), 0),
        (("status", "odd-1"), 0),
        (("status", "odd"), 2),
        (("resume", "odd-1"), 2),
    ):
        assert run(["jobs", *arguments, "--address", head]) == code
        out, err = capfd.readouterr()
        assert "\x1b" not in out + err and "Traceback" not in err
    assert err.startswith("tinynet: job odd-1 has no request that this version can read (KeyError")


@pytest.mark.ray
def test_working_dir_with_user_space(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module is uploaded with the job, and a resumed job requires it again."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "only_here.py").write_text(OWN_SPACE)
    monkeypatch.syspath_prepend(str(folder))
    config = tiny_config(tmp_path, "space.name=only_here:Mine", "search.name=own", trials=2)
    advice = "or install it; for a cluster, pass it to tinynet submit --working-dir"
    with pytest.raises(RequestError, match=f"there is no module 'only_here'; run from .* {advice}"):
        submit_search(config, head)
    job = submit_search(config, head, working_dir=str(folder))
    jobs = Jobs(head)
    assert wait_for(jobs, job.id, "SUCCEEDED", "FAILED").status == "SUCCEEDED", jobs.logs(job.id)
    assert len(results(tmp_path, "own")) == 2
    with pytest.raises(RequestError, match="was submitted with --working-dir"):
        jobs.resume(job.id)


@pytest.mark.ray
def test_working_dir_that_other_nodes_unpack_again(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node of a host unpacks the upload to one path, and removes what was there.

    Without a check job, the other nodes do so when their first trial starts, during the search.
    """
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "unpacked_again.py").write_text(f"{OWN_SPACE}\n# {tmp_path}\n")
    monkeypatch.syspath_prepend(str(folder))
    config = tiny_config(tmp_path, "space.name=unpacked_again:Mine", "search.name=again", trials=2)
    job = submit_search(config, head, working_dir=str(folder), check=False)
    jobs = Jobs(head)
    assert wait_for(jobs, job.id, "SUCCEEDED", "FAILED").status == "SUCCEEDED", jobs.logs(job.id)
    assert len(results(tmp_path, "again")) == 2


@pytest.mark.quick
def test_directory_of_a_job_outlasts_its_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = tmp_path / "upload"
    upload.mkdir()
    (upload / "table.txt").write_text("first")
    monkeypatch.chdir(upload)
    (tmp_path / "scratch").mkdir()
    with lasting_directory(tmp_path / "scratch" / "directory"):
        shutil.rmtree(upload)
        upload.mkdir()
        (upload / "table.txt").write_text("again")
        assert Path.cwd() == tmp_path / "scratch" / "directory"
        assert Path("table.txt").read_text() == "again"
    shutil.rmtree(tmp_path / "scratch")
    assert Path.cwd().exists()
    assert (upload / "table.txt").exists()


@pytest.mark.ray
def test_submit_training(head: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
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
def test_check_reports_all_problems(head: str, tmp_path: Path) -> None:
    """One message contains all problems; no job is submitted and no file is written."""
    nowhere = tmp_path / "laptop" / "only"
    settings = (
        "data.name=imagefolder",
        f"data.path={tmp_path}/no-images",
        "tracking.uri=http://127.0.0.1:9",
        "search.name=blind",
    )
    with pytest.raises(RequestError) as refused:
        submit_search(tiny_config(nowhere, *settings, trials=2), head)
    message = str(refused.value)
    assert "\n" not in message
    for part in (
        "cannot run search blind",
        "no-images",
        f"storage {nowhere} does not exist on",
        "MLflow at http://127.0.0.1:9 does not respond",
    ):
        assert part in message
    assert not nowhere.exists()
    assert not [job for job in Jobs(head).all() if job.name == "blind"]
    too_large = tiny_config(tmp_path, "scaling.gpus=1", "search.name=too-large", trials=2)
    with pytest.raises(
        RequestError, match="no room for a trial of 1 x 1 CPU and 1 GPU on nodes of"
    ):
        submit_search(too_large, head)
    assert not (tmp_path / "too-large").exists()


@pytest.mark.ray
def test_cluster_requires_its_token(
    head: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "SECRETWORD" * 3)
    assert run(["jobs", "list", "--address", head]) == 2
    wrong = capfd.readouterr().err
    assert "rejects the token" in wrong
    assert "SECRETWORD" not in wrong
    # Ray caches the token of a process, so the case without a token needs a different process.
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE")
    }
    command = [sys.executable, "-m", "tinynet_search.cli.main", "jobs", "list", "--address", head]
    completed = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (completed.returncode, completed.stdout) == (2, "")
    assert "requires a token" in completed.stderr


class FakeDashboard(BaseHTTPRequestHandler):
    """A simulated dashboard with a version of Ray, and optionally a required token."""

    version, token = "2.58.0", ""

    def do_GET(self) -> None:
        authorization = self.headers.get("Authorization")
        if not self.token or authorization == f"Bearer {self.token}":
            status = 200
        else:
            status = 403 if authorization else 401
        body = json.dumps(
            {"version": "4", "ray_version": self.version, "ray_commit": "x", "session_name": "x"}
        ).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body if status == 200 else b"Unauthorized")


@pytest.fixture
def dashboard() -> Iterator[tuple[str, type[FakeDashboard]]]:
    """The address and the class of a simulated dashboard."""
    handler = type("Dashboard", (FakeDashboard,), {})
    with serving(handler) as url:
        yield url, handler


def test_different_version_of_ray_is_refused(
    dashboard: tuple[str, type[FakeDashboard]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray decides at its import whether it requires a token.
    monkeypatch.setenv("RAY_AUTH_TOKEN", "any")
    url, handler = dashboard
    handler.version = "2.40.0"
    with pytest.raises(
        RequestError,
        match=r"runs Ray 2\.40\.0, this machine \d+\.\d+\.\d+: "
        r"pip install 'ray\[default\]==2\.40\.0' here, or",
    ):
        connect(url)


def test_patch_version_of_ray_may_differ(
    dashboard: tuple[str, type[FakeDashboard]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "any")
    url, handler = dashboard
    handler.version = "2.58.99"
    for _ in range(2):  # the warning is logged once
        assert connect(url).get_address() == url
    (warning,) = caplog.messages
    assert re.fullmatch(
        rf"warning: the cluster at {url} runs Ray 2\.58\.99, this machine 2\.58\.\d+, which work "
        r"together; for the same version, pip install 'ray\[default\]==2\.58\.99' here",
        warning,
    )


@pytest.mark.ray
def test_client_of_a_different_patch_version_submits(head: str, tmp_path: Path) -> None:
    """The commands of a machine whose Ray reports another patch version, on a real cluster."""
    script = (
        "import sys, ray; ray.__version__ = '2.58.99'; "
        "from tinynet_search.cli.main import run; sys.exit(run(sys.argv[1:]))"
    )
    for arguments in (
        ["jobs", "list"],
        ["submit", *tiny_arguments(tmp_path, "search.name=patch", trials=2), "--yes"],
    ):
        completed = subprocess.run(
            [sys.executable, "-c", script, *arguments, "--address", head],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert completed.returncode == 0, completed.stderr
        assert completed.stderr.count(f"warning: the cluster at {head} runs Ray 2.58.") == 1
    assert len(results(tmp_path, "patch")) == 2


@pytest.mark.parametrize("name", ["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])
def test_address_argument_overrides_environment(
    dashboard: tuple[str, type[FakeDashboard]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Ray's own client would send the token to the cluster in the environment."""
    # Ray decides at its import whether it requires a token.
    monkeypatch.setenv("RAY_AUTH_TOKEN", "any")
    for other_address in ("http://127.0.0.1:9", "127.0.0.1:9"):
        monkeypatch.setenv(name, other_address)
        assert connect(dashboard[0]).get_address() == dashboard[0]
        assert os.environ[name] == other_address


def test_missing_and_wrong_token(
    dashboard: tuple[str, type[FakeDashboard]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, handler = dashboard
    handler.token = "right"
    with pytest.raises(
        RequestError,
        match=r"requires a token: set it in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH, or",
    ):
        connect(url)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "SECRETWORD")
    with pytest.raises(RequestError, match="rejects the token") as refused:
        connect(url)
    assert "SECRETWORD" not in str(refused.value)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / "token").write_text("right\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert connect(url).get_address() == url


@pytest.mark.quick
def test_token_sources_have_rays_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text(" home\n")
    assert find_token() == "home"
    (tmp_path / "file").write_text("file")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert find_token() == "file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "variable")
    assert find_token() == "variable"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    for text, message in (("", "is empty"), ("a\nb", "is not valid")):
        (tmp_path / "file").write_text(text)
        with pytest.raises(RequestError, match=message):
            find_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "SECRET\nWORD")
    with pytest.raises(RequestError, match="RAY_AUTH_TOKEN is not valid") as refused:
        find_token()
    assert "WORD" not in str(refused.value)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "missing"))
    with pytest.raises(RequestError, match="is not a readable token file"):
        find_token()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (None, "pass --address http://HEAD:8265"),
        ("127.0.0.1:6379", "is not a valid address of a Ray dashboard"),
        ("ray://head:10001", "is not a valid address of a Ray dashboard"),
        ("http://", "is not a valid address of a Ray dashboard"),
        ("http://head:99999", "is not a valid address of a Ray dashboard"),
        ("http://user:SECRETWORD@head:8265", "contains credentials"),
        ("http://127.0.0.1:9", "no cluster responds at http://127.0.0.1:9 (Connection refused)"),
        (
            "http://no-such-host.invalid:8265",
            "no cluster responds at http://no-such-host.invalid:8265",
        ),
    ],
)
def test_invalid_address_is_refused_in_one_line(
    address: str | None, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--address", address] if address else []
    for verb in (
        ["submit", "--preset", "demo", "--storage", str(tmp_path), "--yes"],
        ["jobs", "list"],
    ):
        assert run([*verb, *options]) == 2
        shown = capsys.readouterr()
        assert message in shown.err
        assert "SECRETWORD" not in shown.err
        assert shown.err.count("\n") == 1
        assert shown.out == ""


@pytest.mark.quick
def test_local_paths_and_secrets_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match=r"storage\.path 'searches' is relative to this machine"):
        search_command(tiny_config(Path("searches")), None)
    with pytest.raises(RequestError, match=r"data\.path 'images' is relative to this machine"):
        search_command(tiny_config(tmp_path, "data.name=imagefolder", "data.path=images"), None)
    with pytest.raises(RequestError, match="MLFLOW_TRACKING_USERNAME") as refused:
        search_command(tiny_config(tmp_path), "http://user:SECRETWORD@mlflow:5000")
    assert "SECRETWORD" not in str(refused.value)
    with pytest.raises(RequestError, match="is relative to this machine"):
        train_command(TrainRequest(network="tinynet_e", data="petals"))
    absolute = str(tmp_path)
    secrets: list[tuple[str, str | None, tuple[str, ...]]] = [
        ("s3://KEY:SECRETWORD@bucket/x", None, ()),
        ("s3://bucket/x?secret_key=SECRETWORD", None, ()),
        (absolute, "http://mlflow:5000", ("tracking.uri=http://u:SECRETWORD@m:5000",)),
        (absolute, "postgresql://h/db?user=u&password=SECRETWORD", ()),
    ]
    for storage, tracking, settings in secrets:
        with pytest.raises(RequestError, match="credentials") as refused:
            search_command(tiny_config(storage, *settings), tracking)
        assert "SECRETWORD" not in str(refused.value)
        with pytest.raises(RequestError, match="credentials") as refused:
            train_command(
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
        train_command(TrainRequest(network="no_such_net", data="petals", storage=absolute))
    with pytest.raises(RequestError, match="nonsense"):
        train_command(
            TrainRequest(
                network="tinynet_e",
                data="petals",
                storage=absolute,
                settings=("recipe.nonsense=3",),
            )
        )


@pytest.mark.quick
def test_command_contains_arguments_and_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    command = search_command(
        tiny_config(tmp_path, "run.address=1.2.3.4:6379", trials=4), None, ["failed"]
    )
    assert command.arguments == (
        "search",
        "{config}",
        "--tracking",
        "http://mlflow:5000",
        "--retry",
        "failed",
    )
    assert "address" not in command.values["run"]
    assert "tracking" not in command.values
    auto = tiny_config(tmp_path, "scaling.auto=true", "search.owner=ann")
    on_cluster = validate(search_command(auto, None).values, "on the cluster")
    assert (on_cluster, on_cluster.scaling.model_fields_set) == (auto, {"auto"})
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    # Without a URI, the environment variable of the cluster's nodes applies.
    assert "--tracking" not in search_command(auto, None).arguments
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    metadata = command.metadata(["wheel"])
    assert all(isinstance(value, str) for value in metadata.values())
    environment = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"metadata": metadata})}
    assert requested(environment)["config"]["search"]["trials"] == 4
    # The cluster has neither this configuration nor this environment.
    chosen = ("tracking.promote=true", "tracking.model=mine", 'tracking.uri="http://other"')
    sent = search_command(tiny_config(tmp_path, *chosen), None)
    assert sent.values["tracking"] == {"promote": True, "model": "mine"}
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "{owner}-{space}")
    sent = search_command(tiny_config(tmp_path, "search.owner=ann"), None)
    assert sent.values["tracking"] == {"experiment": "ann-efficientnet_mini"}
    assert validate(sent.values, "on the cluster").tracking.experiment == "ann-efficientnet_mini"
    request = TrainRequest(
        network="tinynet_e", data="petals", settings=["search.owner=ann", *chosen[:2]]
    )
    values = train_command(replace(request, storage=str(tmp_path))).values
    assert values["tracking"] == {
        "experiment": "ann-efficientnet_b0",
        "model": "mine",
        "promote": True,
    }
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    # The cluster must not replace the owner by its own login name.
    monkeypatch.setenv("TINYNET_OWNER", "bob")
    sent = search_command(tiny_config(tmp_path), None)
    assert (sent.owner, sent.values["search"]["owner"]) == ("bob", "bob")
    assert sent.metadata(())["tinynet.owner"] == "bob"
    train = train_command(TrainRequest(c=0.5, data="petals", epochs=3, storage=str(tmp_path)))
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
    assert train.check_values is not None
    assert (train.owner, train.values["search"]["owner"]) == ("bob", "bob")
    assert validate(train.check_values, "on the cluster").owner == "bob"
    assert validate(train.check_values, "on the cluster").space.name == "efficientnet_b0"


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
def test_entrypoint_outside_a_job_is_refused(text: str | None) -> None:
    with pytest.raises(RequestError, match="not a job of tinynet submit"):
        requested({} if text is None else {"RAY_JOB_CONFIG_JSON_ENV_VAR": text})


def test_invalid_uploads_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(working_dir: Path | None, wheel: Path | None, message: str) -> None:
        with (
            pytest.raises(RequestError, match=message),
            environments.runtime_env(working_dir and str(working_dir), wheel and str(wheel)),
        ):
            pytest.fail("the upload was accepted")

    refused(tmp_path / "none", None, "is not a folder")
    (tmp_path / "big").write_bytes(bytes(2000))
    monkeypatch.setattr(environments, "MAX_UPLOAD_SIZE", 1000)
    refused(tmp_path, None, "pass a folder of code, or list other files in its .rayignore")
    (tmp_path / ".rayignore").write_text("big\n")
    with environments.runtime_env(str(tmp_path), None) as env:
        assert env.get("working_dir") == str(tmp_path)
    for name in ("x.whl", "x.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(
                "other/__init__.py" if name == "x.whl" else "tinynet_search/__init__.py", ""
            )
        refused(None, tmp_path / name, "is not a wheel of tinynet-search")
    refused(None, tmp_path / "none.whl", "cannot be read")


@pytest.mark.quick
def test_wheel_is_uploaded_as_folders(tmp_path: Path) -> None:
    """For a wheel file, Ray would also install the dependencies."""
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


def test_submit_refuses_unknown_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--address", "http://127.0.0.1:9", "--storage", str(tmp_path), "--yes"]
    assert run(["submit", "--preset", "demo", "--epoch", "3", *common]) == 2
    assert "unknown option '--epoch'" in capsys.readouterr().err
    assert run(["submit", "train", "tinynet_e", "--data", "petals", "--what", *common]) == 2
    assert "No such option: --what" in capsys.readouterr().err
    assert run(["submit", "train", "tinynet_e", "--weights", "x.pth", *common]) == 2
    assert "are for tinynet train" in capsys.readouterr().err
    assert (
        run(
            ["submit", "train", "--c", "0.5", "--formula", "mine.json", "--data", "petals", *common]
        )
        == 2
    )
    assert "is a file on this machine" in capsys.readouterr().err


def test_submit_accepts_options_of_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--address", "http://127.0.0.1:9", "--storage", str(tmp_path), "--yes"]
    for options, message in (
        (["--epochs", "3", "--trial-timeout", "30m"], "no cluster responds"),
        (["--continue", "frontier", "--epochs", "30", "--from-scratch"], "no cluster responds"),
        (["--from-scratch"], "--from-scratch needs --continue frontier"),
        (["--trial-timeout", "soon"], "'soon' is not a valid time"),
        (["--dry-run"], "unknown option '--dry-run'"),
    ):
        assert run(["submit", "--preset", "demo", *options, *common]) == 2
        assert message in capsys.readouterr().err
    assert (
        run(["submit", "train", "tinynet_e", "--data", "petals", "--trial-timeout", "30m", *common])
        == 2
    )
    assert "remove --preset, --trials, --trial-timeout" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "auto"),
    [("scaling.loader_workers=7", True), ("scaling.gpus=1", None), ("scaling.workers=1", None)],
)
def test_training_scales_automatically_by_default(
    tmp_path: Path, setting: str, auto: bool | None
) -> None:
    command = train_command(
        TrainRequest(network="tinynet_e", data="petals", storage=str(tmp_path), settings=(setting,))
    )
    assert command.values["scaling"].get("auto") == auto


@pytest.mark.quick
def test_patch_version_of_python_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "versions", lambda: {"python": "3.11.7", "ray": "2.58.0"})
    assert preflight._version_differences({"python": "3.11.99", "ray": "2.58.0"}) == []
    node_versions = {"python": "3.12.7", "ray": "2.58.1"}
    assert preflight._version_differences(node_versions) == [
        "python 3.12.7, but 3.11.7 on the driver's node",
        "ray 2.58.1, but 2.58.0 on the driver's node",
    ]


@pytest.mark.parametrize(
    ("nodes", "settings", "at_once", "note"),
    [
        ([], ("run.concurrency=4",), 4, "no trial fits on the current nodes"),
        ([placement.Nodes({"CPU": 8.0, "GPU": 1.0})], ("run.concurrency=4",), 4, None),
        (
            [placement.Nodes({"CPU": 8.0, "GPU": 1.0})],
            (),
            1,
            "1 at once, even if the cluster grows",
        ),
    ],
)
def test_estimate_for_growing_cluster(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[placement.Nodes],
    settings: tuple[str, ...],
    at_once: int,
    note: str | None,
) -> None:
    monkeypatch.setattr(preflight, "max_nodes", lambda: nodes)
    config = tiny_config(
        tmp_path, "run.wait_for_nodes=30m", "scaling.gpus=1", *settings, at_once=None
    )
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


def test_submit_without_terminal_requires_yes(
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
    assert "pass --yes" in capsys.readouterr().err
