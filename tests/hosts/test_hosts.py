"""A search on a secured cluster of three hosts, sent from a fourth; one is cut off in the middle and comes back (``make test-cluster``)."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from search_spaces import RequestError
from tests.hosts.hosts import OWN, Hosts, lacking
from tests.hosts.services import Services, services
from tests.search.helpers import tiny_arguments, tiny_config
from tests.tracking.helpers import Window, wanted_points
from tests.tracking.servers import NO_POSTGRES, postgres_programs
from tests.trainables.helpers import without_times
from tinynet_search.cli.main import run
from tinynet_search.config import load_config
from tinynet_search.jobs.connection import connect
from tinynet_search.jobs.watching import Jobs
from tinynet_search.store.directory import PLAN, SearchStore
from trainables.result import TrialResult
from trainables.run_name import RunName

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
TRAIN = (
    "run.executor=ray_train",
    "scaling.workers=2",
    "scaling.placement=STRICT_SPREAD",
    "recipe.micro_batch=24",
)
# Results of an undisturbed search that a disturbed one is held against: the largest networks', which come first.
COMPARED = 2
WAIT = 1500.0
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class Cluster:
    """Ray on the hosts, as the deploy files start it."""

    def __init__(self, hosts: Hosts, made: Services) -> None:
        self.hosts, self.made = hosts, made
        self.url = f"http://{hosts.addresses[HEAD]}:{DASHBOARD}"

    def start(self, name: str) -> None:
        address = self.hosts.addresses[name]
        common = [
            "ray",
            "start",
            f"--node-ip-address={address}",
            "--object-store-memory=100000000",
            "--disable-usage-stats",
            "--block",
        ]
        head = [
            "--head",
            f"--port={RAY_PORT}",
            f"--dashboard-host={address}",
            f"--dashboard-port={DASHBOARD}",
            "--num-cpus=0",
        ]
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
    for name in (
        "RAY_AUTH_TOKEN",
        "MLFLOW_TRACKING_URI",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
    ):
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
    command = [
        "ray",
        "list",
        "nodes",
        "--address",
        made.url,
        "--filter",
        "state=ALIVE",
        "--format",
        "json",
    ]
    done = subprocess.run(
        command,
        env={**os.environ, **made.made.client},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return " ".join(f"Node {node['node_ip']}" for node in json.loads(done.stdout))


def storage(made: Cluster, name: str = "all") -> str:
    return f"s3://searches/{name}?{made.made.s3_options}"


class Told:
    """What the suite prints: commands as a user gives them with what they say, and what happened when."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd, self._started = capfd, time.monotonic()

    def __call__(self, text: str) -> None:
        with self._capfd.disabled():
            print(f"{time.monotonic() - self._started:6.1f} s  {text}", flush=True)

    def command(self, *arguments: str) -> str:
        """Give one, which has to go well; what it said."""
        self(f"$ tinynet {' '.join(arguments)}")
        self._capfd.readouterr()
        code = run(list(arguments))
        said = "".join(self._capfd.readouterr())
        assert code == 0, said
        with self._capfd.disabled():
            print("".join(f"          {line}\n" for line in said.splitlines()), end="", flush=True)
        return said


def _submitted(made: Cluster, told: Told, name: str) -> SearchStore:
    """The demo's search with two-worker trials across hosts, sent."""
    place = storage(made, name)
    settings = [argument for setting in TRAIN for argument in ("--set", setting)]
    given = ["--preset", "demo", "--storage", place, *settings, "--set", f"search.name={name}"]
    said = told.command("submit", *given, "--address", made.url, "--yes", "--no-wait")
    assert "\n1 trials at once" in said and all(
        f"\n{address} " in said for address in made.hosts.addresses.values()
    )
    return SearchStore(tiny_config(place, f"search.name={name}").url)


def _undisturbed(made: Cluster, told: Told) -> dict[RunName, TrialResult]:
    """The first results of the same search with nothing in its way."""
    store, jobs = _submitted(made, told, "undisturbed"), Jobs(made.url)
    until(
        lambda: len(store.finished()) >= COMPARED or jobs.find("undisturbed").status in ENDED,
        "some results",
        WAIT,
    )
    told.command("jobs", "stop", "undisturbed", "--address", made.url)
    until(lambda: jobs.find("undisturbed").status in ENDED, "it has stopped", WAIT)
    told.command("jobs", "status", "undisturbed", "--address", made.url)
    found = store.results(sorted(store.finished()))
    assert len(found) >= COMPARED, jobs.logs("undisturbed")
    return found


def test_a_host_is_cut_off_and_comes_back(made: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    """Two-worker trials across hosts, MLflow with accounts on PostgreSQL, results in S3: as if nothing had happened."""
    told, jobs = Told(capfd), Jobs(made.url)
    told(
        f"head {made.hosts.addresses[HEAD]}, workers {', '.join(made.hosts.addresses[name] for name in WORKERS)}: up"
    )
    beside = _undisturbed(made, told)
    store = _submitted(made, told, "demo")
    trials = store.folder
    until(
        lambda: any(
            "epoch-0002" in name
            for one in trials.names("trials")
            for name in trials.names(f"trials/{one}")
        ),
        "two epochs",
    )
    told(
        f"two epochs of {', '.join(trials.names('trials'))} are committed: host two, {made.hosts.addresses['two']}, is cut off"
    )
    made.hosts.cut("two")
    until(
        lambda: f"Node {made.hosts.addresses['two']}" not in _alive(made),
        "the head has noticed",
        120.0,
    )
    told("the head takes it for dead; its cable is put back")
    made.hosts.join("two")
    # A node that was declared dead hears of it, and ends; its host's init starts it again.
    time.sleep(15.0)
    ended = not made.hosts.running("two")
    made.hosts.end("two")
    told(
        f"Ray on host two {'has ended by itself' if ended else 'was ended'}, and is started again as its init would"
    )
    made.start("two")
    until(lambda: jobs.find("demo").status in ENDED, "the job has ended", WAIT)
    for line in jobs.logs("demo").splitlines():
        if line.startswith(("[", "tinynet")):
            told(line.rstrip())
    told.command("jobs", "status", "demo", "--address", made.url)
    assert jobs.find("demo").status == "SUCCEEDED", jobs.logs("demo")
    told.command(
        "jobs", "resume", "demo", "--address", made.url, "--no-wait"
    )  # a search that is whole has nothing to do
    until(lambda: jobs.find("demo").status in ENDED, "the second job has ended", WAIT)
    told.command("jobs", "list", "--address", made.url)
    told.command(
        "frontier",
        "--search",
        "demo",
        "--storage",
        storage(made, "demo"),
        "--tracking",
        made.made.mlflow,
    )
    _check(made, store, beside, told)
    _check_secrets(made, store, jobs.logs("demo"), told)


def _check(
    made: Cluster, store: SearchStore, beside: dict[RunName, TrialResult], told: Told
) -> None:
    config, found = load_config(preset="demo"), store.results(sorted(store.finished()))
    assert len(found) == config.search.trials + 2 * len(config.search.finals), sorted(found)
    assert {one: without_times(result) for one, result in beside.items()} == {
        one: without_times(found[one]) for one in beside
    }
    told(
        f"{len(found)} results; those of {len(beside)} trials that nothing disturbed are the same, bit for bit"
    )
    window = Window(made.made.mlflow, "demo")
    assert (window.parent.info.status, window.statuses()) == ("FINISHED", ["FINISHED"] * len(found))
    points = {one: window.points(one) for one in window.runs}
    assert points == {one: wanted_points(result.epochs) for one, result in found.items()}
    epochs = sum(len(result.epochs) for result in found.values())
    told(f"MLflow: one search, {len(window.runs)} runs, all FINISHED, {epochs} epochs, each once")


def _check_secrets(made: Cluster, store: SearchStore, said: str, told: Told) -> None:
    """Nowhere but in the environment: no log, no plan, no tag, no list of jobs or processes tells one."""
    jobs = json.dumps([asdict(row) for row in Jobs(made.url).all()])
    texts = {"the job's log": said, "the list of jobs": jobs}
    texts |= {f"job {job.submission_id}": str(vars(job)) for job in connect(made.url).list_jobs()}
    texts["the plan"] = json.dumps(store.read_json(PLAN))
    window = Window(made.made.mlflow, "demo")
    texts["MLflow"] = "".join(
        str(run.to_dictionary()) for run in (window.parent, *window.runs.values())
    )
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
    told(
        f"{len(texts)} logs, plans, tags, descriptions and command lines: in none is any of {len(made.made.secrets)} secrets"
    )


def test_who_has_no_token_stays_outside(
    made: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
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


def test_a_folder_that_only_the_laptop_has(
    made: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """/tmp/tinynet-ray is each host's own, as a laptop's folder is its own: what the driver writes there no other host sees."""
    own = f"{OWN[1]}/searches"
    assert run(["submit", *tiny_arguments(own, trials=2), "--address", made.url, "--yes"]) == 2
    shown = capfd.readouterr().err
    for address in (made.hosts.addresses[name] for name in WORKERS):
        assert f"node {address}: storage {own} is not the driver's" in shown
    assert (
        run(
            [
                "submit",
                *tiny_arguments(tmp_path / "no" / "where", trials=2),
                "--address",
                made.url,
                "--yes",
            ]
        )
        == 2
    )
    assert "there is no such folder" in capfd.readouterr().err
