"""A search on a secured cluster of three hosts, submitted from a fourth; one loses its network.

Run by ``make test-cluster``. The disconnected host rejoins the cluster during the search.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from search_spaces import RequestError
from tests.hosts.hosts import PRIVATE_DIRECTORIES, Hosts, missing_requirement
from tests.hosts.services import Services, services
from tests.search.helpers import tiny_arguments, tiny_config
from tests.tracking.helpers import MlflowSearch, expected_points
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
# Ray detects a dead host by missed health checks; with these settings within seconds.
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 4,
}
TRAIN_SETTINGS = (
    "run.executor=ray_train",
    "scaling.workers=2",
    "scaling.placement=STRICT_SPREAD",
    "recipe.micro_batch=24",
)
# Number of results of an undisturbed search to compare with: those of the largest networks, which
# run first.
COMPARED = 2
SEARCH_TIMEOUT = 1500.0
ENDED_STATUSES = ("SUCCEEDED", "FAILED", "STOPPED")


class Cluster:
    """Ray on the hosts, started in the same way as in the deploy files."""

    def __init__(self, hosts: Hosts, services: Services) -> None:
        self.hosts, self.services = hosts, services
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
        head += [
            f"--temp-dir={PRIVATE_DIRECTORIES[1]}",
            f"--system-config={json.dumps(HEALTH_CHECKS)}",
        ]
        worker = [f"--address={self.hosts.addresses[HEAD]}:{RAY_PORT}", "--num-cpus=1"]
        self.hosts.start(name, [*common, *(head if name == HEAD else worker)], self.services.client)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = missing_requirement() or (None if postgres_programs() else NO_POSTGRES)
    assert reason is None, reason
    home = tmp_path_factory.mktemp("cluster")
    with Hosts([HEAD, *WORKERS], home) as hosts, services(home) as deployment:
        cluster = Cluster(hosts, deployment)
        for name in (HEAD, *WORKERS):
            cluster.start(name)
            if name == HEAD:
                wait_until(lambda: _is_reachable(cluster), "the head is reachable")
        yield cluster


@pytest.fixture(autouse=True)
def user_environment(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment of a user who submits a search: Ray's token and an MLflow account."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        "RAY_AUTH_TOKEN",
        "MLFLOW_TRACKING_URI",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
    ):
        monkeypatch.setenv(name, cluster.services.client[name])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.setenv(name, cluster.services.client[name])


def wait_until(condition: Callable[[], bool], description: str, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timed out after {seconds:.0f} s: {description}"
        time.sleep(0.5)


def _is_reachable(cluster: Cluster) -> bool:
    token, os.environ["RAY_AUTH_TOKEN"] = os.environ.get("RAY_AUTH_TOKEN"), cluster.services.token
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


def _alive(cluster: Cluster) -> str:
    """The nodes that the head reports as alive, as ``Node <address>`` separated by spaces."""
    command = [
        "ray",
        "list",
        "nodes",
        "--address",
        cluster.url,
        "--filter",
        "state=ALIVE",
        "--format",
        "json",
    ]
    completed = subprocess.run(
        command,
        env={**os.environ, **cluster.services.client},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return " ".join(f"Node {node['node_ip']}" for node in json.loads(completed.stdout))


def storage(cluster: Cluster, name: str = "all") -> str:
    return f"s3://searches/{name}?{cluster.services.s3_options}"


class Transcript:
    """Prints what happens during the test with its time, and the commands with their output."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd, self._started = capfd, time.monotonic()

    def __call__(self, text: str) -> None:
        with self._capfd.disabled():
            print(f"{time.monotonic() - self._started:6.1f} s  {text}", flush=True)

    def command(self, *arguments: str) -> str:
        """Run a ``tinynet`` command, which must succeed; return its output."""
        self(f"$ tinynet {' '.join(arguments)}")
        self._capfd.readouterr()
        code = run(list(arguments))
        output = "".join(self._capfd.readouterr())
        assert code == 0, output
        indented = "".join(f"          {line}\n" for line in output.splitlines())
        with self._capfd.disabled():
            print(indented, end="", flush=True)
        return output


def _submit(cluster: Cluster, transcript: Transcript, name: str) -> SearchStore:
    """Submit the demo search with two-worker trials across hosts; return its store."""
    url = storage(cluster, name)
    settings = [argument for setting in TRAIN_SETTINGS for argument in ("--set", setting)]
    arguments = ["--preset", "demo", "--storage", url, *settings, "--set", f"search.name={name}"]
    output = transcript.command(
        "submit", *arguments, "--address", cluster.url, "--yes", "--no-wait"
    )
    assert "\n1 concurrent trials" in output
    assert all(f"\n{address} " in output for address in cluster.hosts.addresses.values())
    return SearchStore(tiny_config(url, f"search.name={name}").url)


def _undisturbed(cluster: Cluster, transcript: Transcript) -> dict[RunName, TrialResult]:
    """The first results of the same search without a failure."""
    store, jobs = _submit(cluster, transcript, "undisturbed"), Jobs(cluster.url)
    wait_until(
        lambda: (
            len(store.finished()) >= COMPARED or jobs.find("undisturbed").status in ENDED_STATUSES
        ),
        "the first results exist",
        SEARCH_TIMEOUT,
    )
    transcript.command("jobs", "stop", "undisturbed", "--address", cluster.url)
    wait_until(
        lambda: jobs.find("undisturbed").status in ENDED_STATUSES,
        "the job has stopped",
        SEARCH_TIMEOUT,
    )
    transcript.command("jobs", "status", "undisturbed", "--address", cluster.url)
    results = store.results(sorted(store.finished()))
    assert len(results) >= COMPARED, jobs.logs("undisturbed")
    return results


def test_host_disconnects_and_rejoins(cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    """A search with a failed host has the same results as an undisturbed one.

    Trials have two workers on different hosts, MLflow uses accounts and PostgreSQL, and the results
    are in S3.
    """
    transcript, jobs = Transcript(capfd), Jobs(cluster.url)
    addresses = cluster.hosts.addresses
    workers = ", ".join(addresses[name] for name in WORKERS)
    transcript(f"head {addresses[HEAD]} and workers {workers} are running")
    undisturbed = _undisturbed(cluster, transcript)
    store = _submit(cluster, transcript, "demo")
    wait_until(lambda: _has_epoch(store, 2), "two epochs are committed")
    trials = ", ".join(store.folder.names("trials"))
    transcript(f"two epochs of {trials} are committed: disconnecting host two, {addresses['two']}")
    cluster.hosts.disconnect("two")
    wait_until(
        lambda: f"Node {addresses['two']}" not in _alive(cluster),
        "the head reports host two as dead",
        120.0,
    )
    transcript("the head reports host two as dead: reconnecting it")
    cluster.hosts.reconnect("two")
    # The head declared the node dead, so Ray on the node exits once it is connected again. The
    # host's init then starts it.
    time.sleep(15.0)
    has_exited = not cluster.hosts.running("two")
    cluster.hosts.stop("two")
    how = "has exited by itself" if has_exited else "was stopped"
    transcript(f"Ray on host two {how}: starting it again, as the host's init would")
    cluster.start("two")
    wait_until(
        lambda: jobs.find("demo").status in ENDED_STATUSES, "the job has ended", SEARCH_TIMEOUT
    )
    for line in jobs.logs("demo").splitlines():
        if line.startswith(("[", "tinynet")):
            transcript(line.rstrip())
    transcript.command("jobs", "status", "demo", "--address", cluster.url)
    assert jobs.find("demo").status == "SUCCEEDED", jobs.logs("demo")
    # A complete search has nothing to do.
    transcript.command("jobs", "resume", "demo", "--address", cluster.url, "--no-wait")
    wait_until(
        lambda: jobs.find("demo").status in ENDED_STATUSES,
        "the second job has ended",
        SEARCH_TIMEOUT,
    )
    transcript.command("jobs", "list", "--address", cluster.url)
    transcript.command(
        "frontier",
        "--search",
        "demo",
        "--storage",
        storage(cluster, "demo"),
        "--tracking",
        cluster.services.mlflow,
    )
    _check_results(cluster, store, undisturbed, transcript)
    _check_secrets(cluster, store, jobs.logs("demo"), transcript)


def _has_epoch(store: SearchStore, epoch: int) -> bool:
    """Whether a trial of the search has committed the epoch."""
    folder = store.folder
    return any(
        f"epoch-{epoch:04d}" in name
        for trial in folder.names("trials")
        for name in folder.names(f"trials/{trial}")
    )


def _check_results(
    cluster: Cluster,
    store: SearchStore,
    undisturbed: dict[RunName, TrialResult],
    transcript: Transcript,
) -> None:
    """Check that all results exist, equal the undisturbed ones and are in MLflow exactly once."""
    config, results = load_config(preset="demo"), store.results(sorted(store.finished()))
    assert len(results) == config.search.trials + 2 * len(config.search.finals), sorted(results)
    assert {name: without_times(result) for name, result in undisturbed.items()} == {
        name: without_times(results[name]) for name in undisturbed
    }
    transcript(
        f"{len(results)} results; {len(undisturbed)} are bit-identical to the undisturbed ones"
    )
    in_mlflow = MlflowSearch(cluster.services.mlflow, "demo")
    assert in_mlflow.parent.info.status == "FINISHED"
    assert in_mlflow.statuses() == ["FINISHED"] * len(results)
    points = {name: in_mlflow.points(name) for name in in_mlflow.runs}
    assert points == {name: expected_points(result.epochs) for name, result in results.items()}
    epochs = sum(len(result.epochs) for result in results.values())
    transcript(
        f"MLflow: one search, {len(in_mlflow.runs)} runs, all FINISHED, {epochs} epochs, each once"
    )


def _check_secrets(
    cluster: Cluster, store: SearchStore, job_log: str, transcript: Transcript
) -> None:
    """Check that secrets are in the environment only.

    No log, plan, tag, list of jobs or command line may contain one.
    """
    jobs = json.dumps([asdict(row) for row in Jobs(cluster.url).all()])
    texts = {"the job's log": job_log, "the list of jobs": jobs}
    texts |= {
        f"job {job.submission_id}": str(vars(job)) for job in connect(cluster.url).list_jobs()
    }
    texts["the plan"] = json.dumps(store.read_json(PLAN))
    in_mlflow = MlflowSearch(cluster.services.mlflow, "demo")
    texts["MLflow"] = "".join(
        str(run.to_dictionary()) for run in (in_mlflow.parent, *in_mlflow.runs.values())
    )
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            texts[str(process)] = process.read_bytes().decode(errors="replace")
        except OSError:
            continue
    for name in cluster.hosts.addresses:
        for pid in cluster.hosts.pids(name)[:1]:
            for log in Path(f"/proc/{pid}/root{PRIVATE_DIRECTORIES[1]}").rglob("*.*"):
                if log.is_file() and log.suffix in (".log", ".out", ".err"):
                    texts[str(log)] = log.read_text(errors="replace")
    for part in ("gcs_server", "raylet", "job-driver"):
        assert any(part in source for source in texts), f"the log of {part} was not checked"
    secrets = cluster.services.secrets
    for source, text in texts.items():
        for secret in secrets:
            assert secret not in text, f"{source} contains a secret"
    transcript(
        f"none of {len(texts)} logs, plans, tags, descriptions and command lines "
        f"contains one of {len(secrets)} secrets"
    )


def test_commands_without_a_valid_token_are_refused(
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    commands = (
        ["jobs", "list"],
        ["submit", "--preset", "demo", "--storage", storage(cluster), "--yes"],
    )
    for command in commands:
        assert run([*command, "--address", cluster.url]) == 2
        assert "requires a token: set it in RAY_AUTH_TOKEN" in capfd.readouterr().err
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 32)
    for command in commands:
        assert run([*command, "--address", cluster.url]) == 2
        error = capfd.readouterr().err
        assert "rejects the token" in error
        assert error.count("\n") == 1


def test_storage_that_is_not_shared_is_refused(
    cluster: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """/tmp/tinynet-ray is private to each host, so other hosts do not see the driver's files there.

    A folder that exists only on the submitting machine is also refused.
    """
    private = f"{PRIVATE_DIRECTORIES[1]}/searches"
    assert (
        run(["submit", *tiny_arguments(private, trials=2), "--address", cluster.url, "--yes"]) == 2
    )
    error = capfd.readouterr().err
    for address in (cluster.hosts.addresses[name] for name in WORKERS):
        assert f"node {address}: storage {private} is not the driver's" in error
    missing = tiny_arguments(tmp_path / "no" / "where", trials=2)
    assert run(["submit", *missing, "--address", cluster.url, "--yes"]) == 2
    assert "does not exist on" in capfd.readouterr().err
