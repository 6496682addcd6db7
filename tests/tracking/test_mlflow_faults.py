"""Tests that publishing is complete and without duplicates after any failure of MLflow.

The server is down, hangs, fails or loses responses, at every kind of request and at any time.
"""

import gc
import random
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.search.helpers import results as results_of
from tests.search.helpers import tiny_config
from tests.tracking.fault_proxy import QUICK, FaultProxy, each_kind
from tests.tracking.helpers import (
    MODEL,
    SQLALCHEMY,
    MlflowSearch,
    Search,
    expected_points,
    formula_text,
    tracking_environment,
    wait_until,
)
from tests.tracking.servers import mlflow_server
from tinynet_search.store.directory import SearchStore
from tinynet_search.tracking import background
from tinynet_search.tracking.publisher import Publisher
from tinynet_search.tracking.sync import sync_search
from trainables.result import TrialResult
from trainables.run_name import RunName

pytestmark = pytest.mark.filterwarnings(SQLALCHEMY)

# Kinds (see `kind_of`) of the requests of a search, from its first epoch to its registered formula.
KINDS = {
    *["GET experiments/get-by-name", "POST experiments/search"],
    *["POST experiments/set-experiment-tag"],
    *["POST runs/search", "POST runs/create", "POST runs/log-batch", "POST runs/update"],
    *["POST runs/delete-tag", "POST runs/delete", "GET runs/get", "GET metrics/get-history"],
    *["PUT artifacts", "POST logged-models", "POST logged-models/search", "PATCH logged-models"],
    *["POST registered-models/create", "POST registered-models/alias"],
    *["GET registered-models/alias"],
    *["POST model-versions/create", "GET model-versions/search"],
}


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with tracking_environment():
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture
def proxy(server: str) -> Iterator[FaultProxy]:
    with FaultProxy(server) as fault_proxy:
        yield fault_proxy


def kind_of(method: str, path: str) -> str:
    """Return the kind of a request: its method and its path without ids."""
    if "mlflow-artifacts" in path:
        return f"{method} artifacts"
    name = re.sub(r"/m-[0-9a-f]+", "", path.partition("/mlflow/")[2])
    return f"{method} {name}"


def sync_until_complete(publisher: Publisher, max_failures: int = 80) -> int:
    """Sync until everything is sent, as the thread does but without its waits.

    Returns:
        The number of failed attempts.
    """

    def sync_and_finish() -> None:
        publisher.sync_once()
        publisher.finish("FINISHED", 1_760_000_999_000)

    failures = 0
    while not publisher._attempt(sync_and_finish):
        failures += 1
        assert failures < max_failures, publisher.last_error
    return failures


def check_complete(
    uri: str, search: Search, results: Mapping[RunName, TrialResult], frontier: set[RunName]
) -> None:
    """Check that MLflow contains a search completely and once.

    There must be one run per trial with every epoch once, one parent, no running run, and one
    version of each formula.
    """
    in_mlflow = MlflowSearch(uri, search.plan.search)
    assert set(in_mlflow.runs) == set(results)
    assert in_mlflow.parent.info.status == "FINISHED"
    for run, result in results.items():
        assert in_mlflow.points(run) == expected_points(result.epochs), run
        status, end = (
            ("FINISHED" if result.finished else "FAILED"),
            int(1000 * result.ended),
        )
        assert (in_mlflow.runs[run].info.status, in_mlflow.runs[run].info.end_time) == (status, end)
    assert {
        run for run, r in in_mlflow.runs.items() if r.data.tags["frontier"] == "true"
    } == frontier
    assert {run for run, r in in_mlflow.runs.items() if "pareto_rank" in r.data.tags} == frontier
    key = in_mlflow.parent.data.tags["tinynet.key"]
    versions = [
        v
        for v in in_mlflow.client.search_model_versions(f"name = '{MODEL}'")
        if v.tags["tinynet.key"] == key
    ]
    models = in_mlflow.client.search_logged_models(
        [in_mlflow.parent.info.experiment_id], f"tags.`tinynet.key` = '{key}'"
    )
    digests = [
        {v.tags["tinynet.digest"] for v in versions},
        {m.tags["tinynet.digest"] for m in models},
    ]
    assert digests[0] == digests[1] and [len(d) for d in digests] == [
        len(versions),
        len(models),
    ] == [1, 1]
    names = sorted(
        item.path for item in in_mlflow.client.list_artifacts(in_mlflow.parent.info.run_id)
    )
    assert names == ["class_names.json", "formula.json", "frontier.csv", "frontier.json"]


def formula_of(name: str) -> str:
    return formula_text(label=name)


@pytest.mark.parametrize("mode", [*QUICK, "late"])
def test_search_is_published_once_if_any_request_fails(
    tmp_path: Path, proxy: FaultProxy, server: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search with restarts, a repeated epoch and a changing frontier, while requests fail."""
    if mode == "late":
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    name = f"every-{mode}"
    search = Search(tmp_path, name, trials=4)
    a, b, c, d = search.candidates
    # The client sends a request twice, so it fails at the first request of a kind and succeeds at
    # the third. A late response takes a timeout, so there is only one.
    failing = (1,) if mode == "late" else (1, 2, 4)
    with each_kind(proxy, mode, kind_of, failing) as counts:
        ended = {a.run: search.end(a)}
        search.commit(b, 2)
        search.commit(c, 3)
        failures = sync_until_complete(search.publisher(proxy.url))
        search.commit(c, 3, again=3)
        second = search.publisher(proxy.url)
        second.conclude(search.rows([a, b]), None, [])
        failures += sync_until_complete(second)
        search.commit(b, 3)
        failures += sync_until_complete(second)
        ended |= {
            b.run: search.end(b),
            c.run: search.end(c, again=3),
            d.run: search.end(d, 2, failed=True),
        }
        third = search.publisher(proxy.url)
        third.conclude(search.rows([b, c]), formula_of(name), [])
        failures += sync_until_complete(third)
    assert set(counts) >= KINDS
    assert failures >= (0 if mode == "slow" else len(KINDS))
    check_complete(server, search, ended, {b.run, c.run})


@pytest.mark.parametrize("seed", range(3))
def test_random_requests_fail(tmp_path: Path, proxy: FaultProxy, server: str, seed: int) -> None:
    """Trials continue while a random share of all requests fails; publishers restart at random."""
    name, rng = f"random-{seed}", random.Random(seed)
    search = Search(tmp_path, name, trials=5)
    proxy.randomly(seed, 0.25, [mode for mode in QUICK if mode != "slow"])
    done = dict.fromkeys([candidate.run for candidate in search.candidates], 0)
    ended: dict[RunName, TrialResult] = {}
    publisher = search.publisher(proxy.url)
    while len(ended) < len(search.candidates):
        candidate = rng.choice([c for c in search.candidates if c.run not in ended])
        done[candidate.run] += 1
        epochs = done[candidate.run]
        # The third trial repeats its second epoch after the third.
        again = 2 if candidate is search.candidates[2] and epochs > 3 else None
        if epochs <= 4:
            search.commit(candidate, epochs, again=again)
        else:
            ended[candidate.run] = search.end(candidate, again=again)
        if not publisher._attempt(publisher.sync_once) and rng.random() < 0.3:
            publisher = search.publisher(proxy.url)
    a, b, *_ = search.candidates
    publisher.conclude(search.rows([a, b]), formula_of(name), [])
    sync_until_complete(publisher)
    check_complete(server, search, ended, {a.run, b.run})


def test_thread_recovers_from_every_mode(
    tmp_path: Path, proxy: FaultProxy, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver is never blocked, and is warned once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(background, "MAX_RETRY_INTERVAL", 0.1)
    search, warnings = Search(tmp_path, "down", trials=5), []
    proxy.mode("refused")
    publisher = search.publisher(proxy.url, warnings)
    publisher.start(interval=0.05)
    wait_until(lambda: bool(warnings), 30)
    ended: dict[RunName, TrialResult] = {}
    modes = ["refused", "hanging", "500", "lost", "cut"]
    longest = 0.0
    for mode, candidate in zip(modes, search.candidates, strict=True):
        proxy.mode(mode)
        search.commit(candidate, 2)
        before = len(proxy.requests)
        if mode != "refused":
            wait_until(lambda before=before: len(proxy.requests) > before + 1, 30)
        ended[candidate.run] = search.end(candidate)
        started = time.monotonic()
        publisher.watch([candidate])
        publisher.conclude(search.rows([candidate]), formula_of("down"), [])
        longest = max(longest, time.monotonic() - started)
    assert longest < 1.0
    assert len(warnings) == 1 and "tinynet sync" in warnings[0]
    proxy.mode("ok")
    assert publisher.close()
    check_complete(server, search, ended, {search.candidates[-1].run})


def test_close_waits_while_the_server_responds(
    tmp_path: Path, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Search(tmp_path, "silent", trials=3)
    for candidate in search.candidates:
        search.end(candidate)
    proxy.mode("hanging")
    publisher = search.publisher(proxy.url)
    publisher.start()
    monkeypatch.setattr(background, "RESPONSE_TIMEOUT", 1.0)
    started = time.monotonic()
    assert publisher.close() is False
    assert 0.9 < time.monotonic() - started < 10

    # ``close`` waits for a slow server while it responds.
    monkeypatch.setattr(background, "RESPONSE_TIMEOUT", 4.0)
    proxy.mode("slow")
    proxy.delay = 0.3
    publisher = search.publisher(proxy.url)
    started = time.monotonic()
    assert publisher.close() is True
    assert time.monotonic() - started > background.RESPONSE_TIMEOUT


CLOSE_AND_EXIT = """
import sys
from pathlib import Path
from tests.tracking.helpers import FORMULA_TEXT, Search, wait_until
search = Search(Path(sys.argv[1]), "exits")
search.end(search.candidates[0])
publisher = search.publisher(sys.argv[2])
publisher.conclude(search.rows(search.candidates[:1]), FORMULA_TEXT, [])
publisher.start(interval=0.05)
wait_until(Path(sys.argv[3]).exists, 90)
print(publisher.close(timeout=1.0), flush=True)
"""


@pytest.mark.parametrize("hanging", ["", "artifacts"])
def test_process_exits_while_its_publisher_hangs(
    tmp_path: Path, proxy: FaultProxy, hanging: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs at the first request, or in an upload, which MLflow does in its own threads.

    The process prints nothing to stderr.
    """
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "90")
    reached = tmp_path / "reached"

    def rule(method: str, path: str) -> str:
        if hanging in path:
            reached.touch()
        return "hanging" if hanging in path else "ok"

    proxy.rule = rule
    command = [sys.executable, "-c", CLOSE_AND_EXIT, str(tmp_path), proxy.url, str(reached)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "False\n"
        closed = time.monotonic()
        _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    # Less than the timeout of one request.
    assert time.monotonic() - closed < 45


def test_failed_attempts_do_not_accumulate_memory(tmp_path: Path, proxy: FaultProxy) -> None:
    search = Search(tmp_path, "memory", trials=5)
    publisher = search.publisher(proxy.url)
    search.end(search.candidates[0])
    publisher.sync_once()
    proxy.mode("refused")

    def attempts(count: int) -> int:
        for _ in range(count):
            assert not publisher._attempt(publisher.sync_once)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    for candidate in search.candidates[1:]:
        search.end(candidate)
    tracemalloc.start()
    try:
        before = attempts(50)  # includes the strings that Python and the JSON parser cache
        assert attempts(50) - before < 30_000
    finally:
        tracemalloc.stop()
    proxy.mode("ok")
    sync_until_complete(publisher)


def test_rejected_and_damaged_trials_do_not_block_others(
    tmp_path: Path, proxy: FaultProxy, server: str
) -> None:
    search = Search(tmp_path, "refusing", trials=5)
    a, b, c, d, e = search.candidates
    search.commit(b, 1)
    search.publisher(server).sync_once()
    before = MlflowSearch(server, "refusing")
    key, experiment = before.parent.data.tags["tinynet.key"], before.parent.info.experiment_id
    # MLflow does not change a param: a run with a param from elsewhere is rejected until it is
    # deleted.
    tags = {**before.runs[b.run].data.tags, "tinynet.key": f"{key}/{a.run}"}
    changed_run = before.client.create_run(
        experiment, tags={k: v for k, v in tags.items() if k != "mlflow.runName"}
    ).info.run_id

    warnings: list[str] = []
    publisher = search.publisher(server, warnings)
    publisher.sync_once()
    before.client.log_param(changed_run, "epochs", "changed")
    for candidate in (a, b, d, e):
        search.end(candidate)
    search.store.folder.write(f"results/{c.run}.json", b"{")
    assert not publisher._attempt(publisher.sync_once)
    assert f"{c.run}.json is damaged" in warnings[0]
    runs = MlflowSearch(server, "refusing").runs
    assert {run: r.info.status for run, r in runs.items()} == dict.fromkeys(
        [b.run, d.run, e.run], "FINISHED"
    ) | {a.run: "RUNNING"}
    search.store.folder.remove(f"results/{c.run}.json")
    assert not publisher._attempt(publisher.sync_once)
    assert (
        publisher.last_error is not None
        and "Changing param values is not allowed" in publisher.last_error
    )
    before.client.delete_run(changed_run)
    search.end(c)
    assert publisher._attempt(publisher.sync_once)
    assert MlflowSearch(server, "refusing").statuses() == ["FINISHED"] * 5


def test_number_of_requests_per_trial(tmp_path: Path, proxy: FaultProxy) -> None:
    """A search takes three requests per trial and a few more.

    For a completely published search, only the parent is queried.
    """
    search = Search(tmp_path, "calls", trials=5)
    for candidate in search.candidates:
        search.end(candidate)
    publisher = search.publisher(proxy.url)
    publisher.sync_once()
    kinds = [kind_of(*request) for request in proxy.requests]
    # In addition to those of the trials there are the requests of the parent: its creation, its
    # params, and the removal of the digest before the first trial is created.
    assert [kinds.count(f"POST runs/{name}") for name in ("create", "log-batch", "update")] == [
        5 + 1,
        5 + 2,
        5,
    ]
    assert len(kinds) <= 3 * 5 + 12
    publisher.finish("FINISHED", 1_760_000_999_000)

    for _ in range(2):
        del proxy.requests[:]
        report = sync_search(search.store, proxy.url)
        assert (report.runs, report.epochs) == (5, 0)
    kinds = [kind_of(*request) for request in proxy.requests]
    assert len(kinds) <= 9 and "POST runs/log-batch" not in kinds


@pytest.mark.ray
def test_complete_search_while_mlflow_is_unreliable(
    ray_cluster: Any, tmp_path: Path, proxy: FaultProxy, server: str
) -> None:
    """Trains real trials.

    The server works at first, then its port is closed, then every second response is lost,
    incomplete or late.
    """
    from tinynet_search.search.driver import run_search

    ended, warnings = threading.Event(), []

    def change_modes() -> None:
        results = tmp_path / "demo" / "results"
        wait_until(
            lambda: ended.is_set() or (results.is_dir() and len(list(results.glob("*.json"))) >= 1),
            120,
        )
        proxy.mode("refused")
        wait_until(lambda: ended.is_set() or len(list(results.glob("*.json"))) >= 4, 120)
        proxy.randomly(0, 0.5)

    thread = threading.Thread(target=change_modes)
    thread.start()
    try:
        config = tiny_config(tmp_path, trials=6)
        outcome = run_search(config, tracking=proxy.url, warn=warnings.append)
    finally:
        ended.set()
        thread.join()
    assert outcome.new == 6 and outcome.lost == []
    sync_search(SearchStore(str(tmp_path / "demo")), server)
    results, in_mlflow = results_of(tmp_path), MlflowSearch(server, "demo")
    assert in_mlflow.parent.info.status == "FINISHED"
    assert {run: in_mlflow.points(run)["top1"] for run in in_mlflow.runs} == {
        run: [(e["epoch"], e["top1"], e["ts"]) for e in result["epochs"]]
        for run, result in results.items()
    }
    assert in_mlflow.statuses() == ["FINISHED"] * 6
    frontier = {row.run for row in outcome.frontier}
    tagged = {run for run, r in in_mlflow.runs.items() if r.data.tags["frontier"] == "true"}
    assert tagged == frontier
