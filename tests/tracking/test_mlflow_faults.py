"""MLflow that is down, hangs, fails or loses answers, at every call and at any moment: afterwards everything is there, once."""

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
from tests.tracking.helpers import SQLALCHEMY, Search, Window, calm, wait_until, wanted_points
from tests.tracking.servers import mlflow_server
from tinynet_search.store.directory import SearchStore
from tinynet_search.tracking import background
from tinynet_search.tracking.publisher import Publisher
from tinynet_search.tracking.sync import sync_search
from trainables.result import TrialResult
from trainables.run_name import RunName

pytestmark = pytest.mark.filterwarnings(SQLALCHEMY)

# What a search asks of MLflow, from its first epoch to its registered formula, by `kind_of`.
KINDS = {
    *["GET experiments/get-by-name", "POST experiments/set-experiment-tag"],
    *["POST runs/search", "POST runs/create", "POST runs/log-batch", "POST runs/update"],
    *["POST runs/delete-tag", "POST runs/delete", "GET runs/get", "GET metrics/get-history"],
    *["PUT artifacts", "POST logged-models", "POST logged-models/search", "PATCH logged-models"],
    *["POST registered-models/create", "POST registered-models/alias"],
    *["POST model-versions/create", "GET model-versions/search"],
}


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with calm():
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture
def proxy(server: str) -> Iterator[FaultProxy]:
    with FaultProxy(server) as between:
        yield between


def kind_of(method: str, path: str) -> str:
    """A request's kind: its path without ids."""
    if "mlflow-artifacts" in path:
        return f"{method} artifacts"
    name = re.sub(r"/m-[0-9a-f]+", "", path.partition("/mlflow/")[2])
    return f"{method} {name}"


def persevere(publisher: Publisher, most: int = 80) -> int:
    """Sync until nothing is left, as the thread does without its waits: how often it failed."""

    def everything() -> None:
        publisher.sync_once()
        publisher.finish("FINISHED", 1_760_000_999_000)

    failed = 0
    while not publisher._attempt(everything):
        failed += 1
        assert failed < most, publisher.fault
    return failed


def check_whole(
    uri: str, search: Search, results: Mapping[RunName, TrialResult], frontier: set[RunName]
) -> None:
    """One run a trial with every epoch once, one parent, nothing running, one version of each formula."""
    window = Window(uri, search.plan.search)
    assert set(window.runs) == set(results)
    assert window.parent.info.status == "FINISHED"
    for run, result in results.items():
        assert window.points(run) == wanted_points(result.epochs), run
        status, end = (
            ("FINISHED" if result.finished else "FAILED"),
            int(1000 * result.ended),
        )
        assert (window.runs[run].info.status, window.runs[run].info.end_time) == (status, end)
    assert {run for run, r in window.runs.items() if r.data.tags["frontier"] == "true"} == frontier
    assert {run for run, r in window.runs.items() if "pareto_rank" in r.data.tags} == frontier
    key = window.parent.data.tags["tinynet.key"]
    versions = [
        v
        for v in window.client.search_model_versions("name = 'tiny-formula'")
        if v.tags["tinynet.key"] == key
    ]
    models = window.client.search_logged_models(
        [window.parent.info.experiment_id], f"tags.`tinynet.key` = '{key}'"
    )
    digests = [
        {v.tags["tinynet.digest"] for v in versions},
        {m.tags["tinynet.digest"] for m in models},
    ]
    assert digests[0] == digests[1] and [len(d) for d in digests] == [
        len(versions),
        len(models),
    ] == [1, 1]
    names = sorted(item.path for item in window.client.list_artifacts(window.parent.info.run_id))
    assert names == ["formula.json", "frontier.csv", "frontier.json"]


def formula_of(name: str) -> str:
    return f'{{"schema": 1, "usable": true, "points": ["{name}"]}}'


@pytest.mark.parametrize("mode", [*QUICK, "late"])
def test_every_call_may_fail_in_every_way(
    tmp_path: Path, proxy: FaultProxy, server: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search with restarts, an epoch done again and a frontier that changes, while each kind of call fails."""
    if mode == "late":
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    name = f"every-{mode}"
    search = Search(tmp_path, name, twists=4)
    a, b, c, d = search.candidates
    # A client that asks twice fails at the first call of a kind, and not at the third. Waiting is long, so only once.
    failing = (1,) if mode == "late" else (1, 2, 4)
    with each_kind(proxy, mode, kind_of, failing) as seen:
        ended = {a.run: search.end(a)}
        search.commit(b, 2)
        search.commit(c, 3)
        failures = persevere(search.publisher(proxy.url))
        search.commit(c, 3, again=3)
        second = search.publisher(proxy.url)
        second.conclude(search.rows([a, b]), None, [])
        failures += persevere(second)
        search.commit(b, 3)
        failures += persevere(second)
        ended |= {
            b.run: search.end(b),
            c.run: search.end(c, again=3),
            d.run: search.end(d, 2, failed=True),
        }
        third = search.publisher(proxy.url)
        third.conclude(search.rows([b, c]), formula_of(name), [])
        failures += persevere(third)
    assert set(seen) >= KINDS
    assert failures >= (0 if mode == "slow" else len(KINDS))
    check_whole(server, search, ended, {b.run, c.run})


@pytest.mark.parametrize("seed", range(3))
def test_any_call_may_fail_at_any_moment(
    tmp_path: Path, proxy: FaultProxy, server: str, seed: int
) -> None:
    """Trials that go on while a share of all calls fails by chance, with publishers that are given up by chance."""
    name, chance = f"chance-{seed}", random.Random(seed)
    search = Search(tmp_path, name, twists=5)
    proxy.randomly(seed, 0.25, [mode for mode in QUICK if mode != "slow"])
    done = dict.fromkeys([candidate.run for candidate in search.candidates], 0)
    ended: dict[RunName, TrialResult] = {}
    publisher = search.publisher(proxy.url)
    while len(ended) < len(search.candidates):
        candidate = chance.choice([c for c in search.candidates if c.run not in ended])
        done[candidate.run] += 1
        epochs = done[candidate.run]
        # The third trial's second epoch is done again once three are there.
        again = 2 if candidate is search.candidates[2] and epochs > 3 else None
        if epochs <= 4:
            search.commit(candidate, epochs, again=again)
        else:
            ended[candidate.run] = search.end(candidate, again=again)
        if not publisher._attempt(publisher.sync_once) and chance.random() < 0.3:
            publisher = search.publisher(proxy.url)
    a, b, *_ = search.candidates
    publisher.conclude(search.rows([a, b]), formula_of(name), [])
    persevere(publisher)
    check_whole(server, search, ended, {a.run, b.run})


def test_down_for_any_length_and_back(
    tmp_path: Path, proxy: FaultProxy, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread through every way of being down; whoever drives it is never held up, and told once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(background, "LONGEST_WAIT", 0.1)
    search, said = Search(tmp_path, "down", twists=5), []
    proxy.mode("refused")
    publisher = search.publisher(proxy.url, said)
    publisher.start(interval=0.05)
    wait_until(lambda: bool(said), 30)
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
    assert len(said) == 1 and "tinynet sync" in said[0]
    proxy.mode("ok")
    assert publisher.close()
    check_whole(server, search, ended, {search.candidates[-1].run})


def test_the_end_waits_for_an_answer_so_long_and_no_longer(
    tmp_path: Path, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Search(tmp_path, "silent", twists=3)
    for candidate in search.candidates:
        search.end(candidate)
    proxy.mode("hanging")
    publisher = search.publisher(proxy.url)
    publisher.start()
    monkeypatch.setattr(background, "SILENCE", 1.0)
    started = time.monotonic()
    assert publisher.close() is False
    assert 0.9 < time.monotonic() - started < 10

    # One that answers, slowly, is waited for as long as it does.
    monkeypatch.setattr(background, "SILENCE", 4.0)
    proxy.mode("slow")
    proxy.delay = 0.3
    publisher = search.publisher(proxy.url)
    started = time.monotonic()
    assert publisher.close() is True
    assert time.monotonic() - started > background.SILENCE


LEAVES = """
import sys
from pathlib import Path
from tests.tracking.helpers import Search, wait_until
search = Search(Path(sys.argv[1]), "leaves")
search.end(search.candidates[0])
publisher = search.publisher(sys.argv[2])
publisher.conclude(search.rows(search.candidates[:1]), '{"usable": true}', [])
publisher.start(interval=0.05)
wait_until(Path(sys.argv[3]).exists, 90)
print(publisher.close(timeout=1.0), flush=True)
"""


@pytest.mark.parametrize("hanging", ["", "artifacts"])
def test_a_process_leaves_while_its_publisher_hangs(
    tmp_path: Path, proxy: FaultProxy, hanging: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first call, and in an upload, for which MLflow has threads of its own; nothing is printed."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "90")
    reached = tmp_path / "reached"

    def rule(method: str, path: str) -> str:
        if hanging in path:
            reached.touch()
        return "hanging" if hanging in path else "ok"

    proxy.rule = rule
    command = [sys.executable, "-c", LEAVES, str(tmp_path), proxy.url, str(reached)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "False\n"
        closed = time.monotonic()
        _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    # Less than the patience of one call.
    assert time.monotonic() - closed < 45


def test_being_down_costs_no_memory(tmp_path: Path, proxy: FaultProxy) -> None:
    search = Search(tmp_path, "memory", twists=5)
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
        before = attempts(50)  # texts that Python and the JSON reader keep are there by then
        assert attempts(50) - before < 30_000
    finally:
        tracemalloc.stop()
    proxy.mode("ok")
    persevere(publisher)


def test_what_is_refused_or_damaged_keeps_nothing_else_back(
    tmp_path: Path, proxy: FaultProxy, server: str
) -> None:
    search = Search(tmp_path, "refusing", twists=5)
    a, b, c, d, e = search.candidates
    search.commit(b, 1)
    search.publisher(server).sync_once()
    before = Window(server, "refusing")
    key, experiment = before.parent.data.tags["tinynet.key"], before.parent.info.experiment_id
    # MLflow does not change a param: where somebody has meddled a run is refused until they mend it.
    tags = {**before.runs[b.run].data.tags, "tinynet.key": f"{key}/{a.run}"}
    meddled = before.client.create_run(
        experiment, tags={k: v for k, v in tags.items() if k != "mlflow.runName"}
    ).info.run_id

    said: list[str] = []
    publisher = search.publisher(server, said)
    publisher.sync_once()
    before.client.log_param(meddled, "epochs", "meddled")
    for candidate in (a, b, d, e):
        search.end(candidate)
    search.store.folder.write(f"results/{c.run}.json", b"{")
    assert not publisher._attempt(publisher.sync_once)
    assert f"{c.run}.json is damaged" in said[0]
    found = Window(server, "refusing").runs
    assert {run: r.info.status for run, r in found.items()} == dict.fromkeys(
        [b.run, d.run, e.run], "FINISHED"
    ) | {a.run: "RUNNING"}
    search.store.folder.remove(f"results/{c.run}.json")
    assert not publisher._attempt(publisher.sync_once)
    assert publisher.fault is not None and "Changing param values is not allowed" in publisher.fault
    before.client.delete_run(meddled)
    search.end(c)
    assert publisher._attempt(publisher.sync_once)
    assert Window(server, "refusing").statuses() == ["FINISHED"] * 5


def test_calls_a_trial_and_none_where_nothing_changed(tmp_path: Path, proxy: FaultProxy) -> None:
    """Three calls a trial and few for all; a search that was published whole is known by one look at its parent."""
    search = Search(tmp_path, "calls", twists=5)
    for candidate in search.candidates:
        search.end(candidate)
    publisher = search.publisher(proxy.url)
    publisher.sync_once()
    kinds = [kind_of(*request) for request in proxy.requests]
    # Beside the trials' the parent's: its creation and params, and that it is not whole, before the first trial is created.
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
    calls = [kind_of(*request) for request in proxy.requests]
    assert len(calls) <= 9 and "POST runs/log-batch" not in calls


@pytest.mark.ray
def test_a_whole_search_while_mlflow_comes_and_goes(
    ray_cluster: Any, tmp_path: Path, proxy: FaultProxy, server: str
) -> None:
    """Real trials; the server is there at first, then nobody listens, then every second answer is lost, garbled or late."""
    from tinynet_search.search.driver import run_search

    over, said = threading.Event(), []

    def weather() -> None:
        storage = tmp_path / "demo" / "results"
        wait_until(
            lambda: over.is_set() or (storage.is_dir() and len(list(storage.glob("*.json"))) >= 1),
            120,
        )
        proxy.mode("refused")
        wait_until(lambda: over.is_set() or len(list(storage.glob("*.json"))) >= 4, 120)
        proxy.randomly(0, 0.5)

    thread = threading.Thread(target=weather)
    thread.start()
    try:
        outcome = run_search(tiny_config(tmp_path, trials=6), tracking=proxy.url, warn=said.append)
    finally:
        over.set()
        thread.join()
    assert outcome.new == 6 and outcome.lost == []
    sync_search(SearchStore(str(tmp_path / "demo")), server)
    found, window = results_of(tmp_path), Window(server, "demo")
    assert window.parent.info.status == "FINISHED"
    assert {run: window.points(run)["top1"] for run in window.runs} == {
        run: [(e["epoch"], e["top1"], e["ts"]) for e in result["epochs"]]
        for run, result in found.items()
    }
    assert window.statuses() == ["FINISHED"] * 6
    on_it = {row.run for row in outcome.frontier}
    assert {run for run, r in window.runs.items() if r.data.tags["frontier"] == "true"} == on_it
