"""A search on a secured cluster of three hosts, sent from a fourth; one is cut off in the middle and comes back (``make test-cluster``)."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search_spaces import RequestError
from tests.cluster.hosts import OWN, Hosts, lacking
from tests.cluster.services import Services, services
from tests.search.helpers import tiny_arguments, tiny_config
from tests.search.mlflow_window import Window, wanted_points
from tests.search.servers import NO_POSTGRES, postgres_programs
from tests.trainables.helpers import without_times
from tinynet_search.cli import run
from tinynet_search.jobs.connection import connect
from tinynet_search.jobs.watching import Jobs
from tinynet_search.plan import agreed_plan, grow
from tinynet_search.store import SearchStore
from trainables.trial import Alone, run_trial

pytestmark = pytest.mark.hosts
HEAD, WORKERS = "head", ("one", "two")
RAY_PORT, DASHBOARD = 6379, 8265
# A dead host is told by silence; here within seconds.
HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 4,
}
TRAIN = ("run.executor=ray_train", "scaling.workers=2", "scaling.placement=STRICT_SPREAD", "execution.checkpoint_every_steps=2")
LONG = ("recipe.epochs=12", "data.train=480", *TRAIN)
WAIT = 600.0


class Cluster:
    """Ray on the hosts, as the deploy files start it."""

    def __init__(self, hosts: Hosts, made: Services) -> None:
        self.hosts, self.made = hosts, made
        self.url = f"http://{hosts.addresses[HEAD]}:{DASHBOARD}"

    def start(self, name: str) -> None:
        address = self.hosts.addresses[name]
        common = ["ray", "start", f"--node-ip-address={address}", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
        head = ["--head", f"--port={RAY_PORT}", f"--dashboard-host={address}", f"--dashboard-port={DASHBOARD}", "--num-cpus=0"]
        head += [f"--temp-dir={OWN[1]}", f"--system-config={json.dumps(HEALTH)}"]
        worker = [f"--address={self.hosts.addresses[HEAD]}:{RAY_PORT}", "--num-cpus=1"]
        self.hosts.start(name, [*common, *(head if name == HEAD else worker)], self.made.client)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = lacking() or (None if postgres_programs() else NO_POSTGRES)
    assert reason is None, reason
    home = tmp_path_factory.mktemp("cluster")
    with Hosts([HEAD, *WORKERS], home) as hosts, services(home) as found:
        cluster = Cluster(hosts, found)
        for name in (HEAD, *WORKERS):
            cluster.start(name)
            if name == HEAD:
                until(lambda: _reached(cluster), "the head comes up")
        yield cluster


@pytest.fixture(autouse=True)
def laptop(made: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a user has who submits: the token, and an account of MLflow."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, made.made.client[name])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.setenv(name, made.made.client[name])


def until(done: Any, what: str, seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"not after {seconds:.0f} s: {what}"
        time.sleep(0.5)


def _reached(cluster: Cluster) -> bool:
    token, os.environ["RAY_AUTH_TOKEN"] = os.environ.get("RAY_AUTH_TOKEN"), cluster.made.token
    try:
        connect(cluster.url).list_jobs()
    except (RequestError, RuntimeError):
        return False
    else:
        return True
    finally:
        if token is None:
            del os.environ["RAY_AUTH_TOKEN"]
        else:
            os.environ["RAY_AUTH_TOKEN"] = token


def _alive(made: Cluster) -> str:
    """The nodes that the head takes to be alive."""
    command = ["ray", "list", "nodes", "--address", made.url, "--filter", "state=ALIVE", "--format", "json"]
    done = subprocess.run(command, env={**os.environ, **made.made.client}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return " ".join(f"Node {node['node_ip']}" for node in json.loads(done.stdout))


def storage(made: Cluster) -> str:
    return f"s3://searches/all?{made.made.s3_options}"


def test_a_host_is_cut_off_and_comes_back(made: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two-worker trials across hosts, MLflow with accounts on PostgreSQL, results in S3; the same results as without a cluster."""
    arguments = ["submit", *tiny_arguments(storage(made), *LONG, trials=2), "--address", made.url, "--yes", "--no-wait", "--json"]
    assert run(arguments) == 0, capfd.readouterr().err
    submitted = json.loads(capfd.readouterr().out)
    seen = submitted["findings"]
    assert (seen["problems"], seen["at_once"]) == ([], 1)
    assert sorted(node["name"] for node in seen["nodes"]) == sorted(made.hosts.addresses.values())
    jobs, store = Jobs(made.url), SearchStore(tiny_config(storage(made)).url)
    until(
        lambda: any("epoch-0002" in name for run_ in store.folder.names("trials") for name in store.folder.names(f"trials/{run_}")),
        "two epochs",
    )
    made.hosts.cut("two")
    until(lambda: f"Node {made.hosts.addresses['two']}" not in _alive(made), "the head has noticed", 120.0)
    made.hosts.join("two")
    # A node that was declared dead hears of it, and ends; its host's init starts it again.
    time.sleep(15.0)
    ended = not made.hosts.running("two")
    made.hosts.end("two")
    print(f"the node that was declared dead {'had ended by itself' if ended else 'was ended'}")
    made.start("two")
    until(lambda: jobs.find(submitted["id"])["status"] in ("SUCCEEDED", "FAILED", "STOPPED"), "the job has ended", WAIT)
    assert jobs.find(submitted["id"])["status"] == "SUCCEEDED", jobs.logs(submitted["id"])
    _check(made, store, tmp_path)
    _check_secrets(made, store, jobs.logs(submitted["id"]))


def _check(made: Cluster, store: SearchStore, tmp_path: Path) -> None:
    plan = store.plan()
    assert plan is not None
    config = tiny_config(tmp_path / "alone", *LONG[:2], trials=2)
    alone = SearchStore(config.url)
    trials = grow(agreed_plan(alone, config), alone, config)
    found = store.results([candidate.run for candidate in trials])
    assert len(found) == 2
    for candidate in trials:
        whole, ours = without_times(run_trial(candidate.spec, alone.url, Alone())), without_times(found[candidate.run])
        assert [e["train_loss"] for e in ours["epochs"]] == pytest.approx([e["train_loss"] for e in whole["epochs"]], rel=2e-3)
    window = Window(made.made.mlflow, "demo")
    assert (window.parent.info.status, window.statuses()) == ("FINISHED", ["FINISHED"] * 2)
    assert {run: window.points(run) for run in window.runs} == {run: wanted_points(result["epochs"]) for run, result in found.items()}


def _check_secrets(made: Cluster, store: SearchStore, said: str) -> None:
    """Nowhere but in the environment: no log, no plan, no tag, no list of jobs or processes tells one."""
    texts = {"the job's log": said, "the list of jobs": json.dumps(Jobs(made.url).all())}
    texts |= {f"job {job.submission_id}": str(vars(job)) for job in connect(made.url).list_jobs()}
    texts["the plan"] = json.dumps(store.plan())
    window = Window(made.made.mlflow, "demo")
    texts["MLflow"] = "".join(str(run.to_dictionary()) for run in (window.parent, *window.runs.values()))
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            texts[str(process)] = process.read_bytes().decode(errors="replace")
        except OSError:
            continue
    for name in made.hosts.addresses:
        for pid in made.hosts.pids(name)[:1]:
            for log in Path(f"/proc/{pid}/root{OWN[1]}").rglob("*.*"):
                if log.is_file() and log.suffix in (".log", ".out", ".err"):
                    texts[str(log)] = log.read_text(errors="replace")
    for part in ("gcs_server", "raylet", "job-driver"):
        assert any(part in place for place in texts), f"{part}'s log was not looked at"
    for place, text in texts.items():
        for secret in made.made.secrets:
            assert secret not in text, f"{place} tells a secret"


def test_who_has_no_token_stays_outside(
    made: Cluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    verbs = (["jobs", "list"], ["submit", "--preset", "demo", "--storage", storage(made), "--yes"])
    for verb in verbs:
        assert run([*verb, "--address", made.url]) == 2
        assert "asks for a token: put it in RAY_AUTH_TOKEN" in capfd.readouterr().err
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 32)
    for verb in verbs:
        assert run([*verb, "--address", made.url]) == 2
        shown = capfd.readouterr().err
        assert "refuses this token" in shown
        assert shown.count("\n") == 1


def test_a_folder_that_only_the_laptop_has(made: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """/tmp/tinynet-ray is each host's own, as a laptop's folder is its own: what the driver writes there no other host sees."""
    own = f"{OWN[1]}/searches"
    assert run(["submit", *tiny_arguments(own, trials=2), "--address", made.url, "--yes"]) == 2
    shown = capfd.readouterr().err
    for address in (made.hosts.addresses[name] for name in WORKERS):
        assert f"node {address}: storage {own} is not the driver's" in shown
    assert run(["submit", *tiny_arguments(tmp_path / "no" / "where", trials=2), "--address", made.url, "--yes"]) == 2
    assert "there is no such folder" in capfd.readouterr().err
