"""MLflow as the window: search directories written by hand, published, and read back with nothing but MLflow's own client."""

import io
import json
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from search_spaces import RequestError, get_space
from tests.tracking.helpers import (
    CREATED,
    FORMULA_TEXT,
    SQLALCHEMY,
    Search,
    Window,
    calm,
    epoch_records,
    wait_until,
    wanted_points,
)
from tinynet_search import TrackingError, frontier_models
from tinynet_search.cli.main import run as run_command
from tinynet_search.mlflow_client.connection import resolve_uri
from tinynet_search.plan.candidates import candidate_of
from tinynet_search.store.schema import FinalRow, FrontierRow
from tinynet_search.tracking.background import Background
from tinynet_search.tracking.publisher import Publisher
from tinynet_search.tracking.queries import trial_rows

pytestmark = pytest.mark.filterwarnings(SQLALCHEMY)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with calm():
        yield


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder whose database all tests share: making one takes seconds."""
    return tmp_path_factory.mktemp("searches")


@pytest.fixture(scope="module")
def uri(storage: Path) -> str:
    return resolve_uri(None, None, str(storage))


def test_every_trial_and_epoch_arrives_exactly_once(storage: Path, uri: str) -> None:
    search = Search(storage, "arrives", twists=5)
    first, second, lost, running, _ = search.candidates
    results = [search.end(first), search.end(second)]
    search.end(lost, 2, failed=True)
    search.commit(running, 2)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        for _ in range(3):
            search.publisher(uri).sync_once()
        again = search.publisher(uri)
        again.sync_once()
        again.sync_once()
    assert (out.getvalue(), err.getvalue()) == ("", "")

    window = Window(uri, "arrives")
    assert set(window.runs) == {first.run, second.run, lost.run, running.run}
    real = ("c", "macs", "params", "resolution", "activation_bytes")
    for candidate, result in zip((first, second), results, strict=True):
        run = window.runs[candidate.run]
        assert window.points(candidate.run) == wanted_points(result.epochs)
        assert (run.info.status, run.info.end_time) == ("FINISHED", 1000 * CREATED + 500_250)
        assert run.info.start_time == min(result.epochs[0].ts - 9500, 1000 * CREATED + 50_500)
        assert run.data.metrics["final_top1"] == result.top1
        figures = {key: run.data.metrics[key] for key in ("r", "d", "w", *real)}
        assert list(figures.values()) == [
            *candidate.spec.rdw,
            *(getattr(candidate.network, key) for key in real),
        ]
        assert {key: float(run.data.params[key]) for key in figures} == figures
        assert run.data.tags["mlflow.parentRunId"] == window.parent.info.run_id
    assert (
        window.runs[first.run].info.run_name == f"r0.86 d1.20 w1.00 · {first.network.resolution}px"
    )

    assert window.points(running.run) == wanted_points(epoch_records(running, 2))
    assert window.runs[running.run].info.status == "RUNNING"
    failed = window.runs[lost.run]
    assert (failed.info.status, failed.data.tags["reason"]) == ("FAILED", "diverged")
    assert "loss nan" in failed.data.tags["detail"]
    assert "final_top1" not in failed.data.metrics

    search.commit(running, 3)
    again.sync_once()
    fourth = search.end(running)
    again.sync_once()
    later = Window(uri, "arrives")
    assert later.points(running.run) == wanted_points(fourth.epochs)
    assert later.runs[running.run].info.status == "FINISHED"


def test_parent_tells_what_was_planned(storage: Path, uri: str) -> None:
    search = Search(storage, "planned")
    publisher = search.publisher(uri)
    assert publisher.close(60)
    parent = Window(uri, "planned").parent
    assert (parent.info.run_name, parent.info.start_time, parent.info.status) == (
        "planned",
        1000 * CREATED,
        "FINISHED",
    )
    assert parent.data.params["recipe.lr"] == str(search.plan.recipe.lr)
    assert parent.data.params["space.band"] == "[0.03, 1.05]"
    assert parent.data.params["data.settings.name"] == "petals"
    assert "frontier_models('planned')" in parent.data.tags["mlflow.note.content"]
    assert (publisher.experiment_id, publisher.run_id) == (
        parent.info.experiment_id,
        parent.info.run_id,
    )
    assert (
        publisher.link is not None
        and f"/#/experiments/{parent.info.experiment_id}/runs" in publisher.link
    )
    assert publisher.busy_seconds > 0


def test_a_longer_budget_is_a_run_of_its_own(storage: Path, uri: str) -> None:
    search = Search(storage, "longer")
    search.end(search.candidates[0])
    search.publisher(uri).sync_once()
    grown = search.plan.model_copy(update={"recipe": search.plan.recipe_for(6)})
    longer = candidate_of(grown, search.candidates[0].spec.network())
    search.end(longer)
    publisher = Publisher(search.store, grown, uri, warn=pytest.fail)
    publisher.watch([longer])
    publisher.sync_once()
    assert set(Window(uri, "longer").runs) == {search.candidates[0].run, longer.run}


def test_frontier_formula_and_finals(
    storage: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    search = Search(storage, "concluded", twists=4)
    for candidate in search.candidates[:3]:
        search.end(candidate)
    search.end(search.candidates[3], failed=True)
    final = candidate_of(
        search.plan, get_space("efficientnet_mini").network((0.9, 0.9, 0.9), 10), kind="final"
    )
    a, b, c, _ = search.candidates
    labels = [FinalRow(run=final.run, label="tiny formula", c=0.5, spec=final.spec)]
    publisher = search.publisher(uri)
    publisher.watch([final])
    publisher.conclude(search.rows([a, b]), FORMULA_TEXT, labels)
    publisher.sync_once()
    search.end(final)
    publisher.sync_once()
    before = Window(uri, "concluded")
    marks = {
        run: (r.data.tags.get("frontier"), r.data.tags.get("pareto_rank"))
        for run, r in before.runs.items()
    }
    assert marks[a.run] == ("true", "1") and marks[b.run] == ("true", "2")
    assert marks[c.run] == ("false", None) and marks[final.run] == (None, None)
    assert (
        before.runs[final.run].data.tags["tinynet.kind"],
        before.runs[final.run].data.tags["label"],
    ) == ("final", "tiny formula")

    later = search.publisher(uri)
    later.watch([final])
    later.conclude(search.rows([c, a]), FORMULA_TEXT, labels)
    assert later.close(60)
    after = Window(uri, "concluded")
    marks = {
        run: (r.data.tags.get("frontier"), r.data.tags.get("pareto_rank"))
        for run, r in after.runs.items()
    }
    assert (
        marks[c.run] == ("true", "1")
        and marks[a.run] == ("true", "2")
        and marks[b.run] == ("false", None)
    )
    assert after.parent.info.status == "FINISHED"

    models = frontier_models("concluded", storage=str(storage))
    assert list(models["id"]) == [m.id for m in sorted((a, c), key=lambda m: m.c)]
    row = models[models["id"] == a.id].iloc[0]
    figures = (row["r"], row["d"], row["w"], row["c"], row["macs"], row["resolution"])
    assert figures == (*a.spec.rdw, a.c, a.network.macs, a.network.resolution)
    assert (row["search"], row["frontier"], row["pareto_rank"], row["status"]) == (
        "concluded",
        True,
        2,
        "FINISHED",
    )
    assert row["top1"] == epoch_records(a, 4)[-1].top1
    rows = trial_rows("concluded", tracking_uri=uri, all_trials=True)
    assert [row.status for row in rows].count("FAILED") == 1 and len(rows) == 4
    shown = [asdict(row) for row in rows]
    assert json.loads(json.dumps(shown)) == shown
    assert run_command(["frontier", "--search", "concluded", "--storage", str(storage)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(cells[0], cells[4], cells[-1]) for cells in lines[-2:]] == [
        (m.id, str(m.network.resolution), {c.id: "1", a.id: "2"}[m.id])
        for m in sorted((a, c), key=lambda m: m.c)
    ]
    check_artifacts_and_registry(uri, after, search.rows([c, a]))
    on_frontier = [row for row in rows if row.frontier]
    assert trial_rows("concluded", tracking_uri=uri) == on_frontier


def check_artifacts_and_registry(uri: str, window: Window, rows: list[FrontierRow]) -> None:
    import mlflow
    from mlflow.artifacts import load_text

    mlflow.set_tracking_uri(uri)
    try:
        base = f"runs:/{window.parent.info.run_id}"
        assert json.loads(load_text(f"{base}/frontier.json")) == [row.to_json() for row in rows]
        assert (
            load_text(f"{base}/frontier.csv").splitlines()[0]
            == "id,r,d,w,resolution,c,macs,params,top1,pareto_rank"
        )
        assert load_text(f"{base}/formula.json") == FORMULA_TEXT
        name = window.parent.data.tags["tinynet.search"]
        for alias in ("champion", name):
            assert load_text(f"models:/tiny-formula@{alias}/formula.json") == FORMULA_TEXT
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    key = window.parent.data.tags["tinynet.key"]
    assert (
        len(
            [
                v
                for v in window.client.search_model_versions("name = 'tiny-formula'")
                if v.tags["tinynet.key"] == key
            ]
        )
        == 1
    )


def test_a_new_formula_is_a_new_champion_and_an_unusable_one_is_none(
    storage: Path, uri: str
) -> None:
    search = Search(storage, "champion2")
    texts = [
        json.dumps({"usable": usable, "n": n}) for n, usable in enumerate((True, True, False, True))
    ]
    for text in texts[:3]:
        publisher = search.publisher(uri)
        publisher.conclude([], text, [])
        publisher.sync_once()
    window = Window(uri, "champion2")
    key = window.parent.data.tags["tinynet.key"]
    versions = [
        v
        for v in window.client.search_model_versions("name = 'tiny-formula'")
        if v.tags["tinynet.key"] == key
    ]
    assert len(versions) == 2
    newest = max(int(v.version) for v in versions)
    for alias in ("champion", "champion2"):
        assert (
            int(window.client.get_model_version_by_alias("tiny-formula", alias).version) == newest
        )


def test_the_thread_follows_a_search_to_its_end(storage: Path, uri: str) -> None:
    search, said = Search(storage, "followed"), []
    first, second, _ = search.candidates
    publisher = search.publisher(uri, said)
    publisher.start(interval=0.05)
    wait_until(lambda: publisher.link is not None, 60)
    assert Window(uri, "followed").parent.info.status == "RUNNING"
    search.commit(first, 1)
    wait_until(lambda: Window(uri, "followed").statuses() == ["RUNNING"], 30)
    search.end(first)
    search.commit(second, 2)
    wait_until(lambda: Window(uri, "followed").statuses() == ["FINISHED", "RUNNING"], 30)
    assert publisher.close(60, status="KILLED")
    stopped = Window(uri, "followed")
    assert (stopped.parent.info.status, stopped.statuses()) == ("KILLED", ["FINISHED", "KILLED"])

    resumed = search.publisher(uri, said)
    resumed.start(interval=0.05)
    wait_until(lambda: Window(uri, "followed").parent.info.status == "RUNNING", 60)
    wait_until(lambda: resumed.epochs_sent == 2, 30)
    assert Window(uri, "followed").statuses() == ["FINISHED", "KILLED"]
    search.commit(second, 3)
    wait_until(lambda: Window(uri, "followed").statuses() == ["FINISHED", "RUNNING"], 30)
    result = search.end(second)
    assert resumed.close(60)
    ended = Window(uri, "followed")
    assert (ended.parent.info.status, ended.statuses()) == ("FINISHED", ["FINISHED", "FINISHED"])
    assert ended.points(second.run) == wanted_points(result.epochs)
    assert said == []


def test_lost_answers_leave_no_second_run(
    storage: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server commits a run, its answer is lost, the client asks again: as a retry within a call, and as an error."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    search, create, calls = Search(storage, "lost"), MlflowClient.create_run, [0]

    def unlucky(self: MlflowClient, *args: Any, **options: Any) -> Any:
        calls[0] += 1
        made = create(self, *args, **options)
        if calls[0] % 2:
            raise MlflowException("the answer was lost")
        return create(self, *args, **options) or made

    monkeypatch.setattr(MlflowClient, "create_run", unlucky)
    results = [search.end(candidate) for candidate in search.candidates]
    publisher, failures = search.publisher(uri), 0
    for _ in range(10):
        try:
            publisher.sync_once()
            break
        except TrackingError as error:
            failures += 1
            assert "the answer was lost" in str(error)
            publisher = search.publisher(uri)
    assert failures == 2
    # One more, of a request that the server took up late: the last look finds it.
    monkeypatch.undo()
    before = Window(uri, "lost")
    for twin in (before.runs[search.candidates[0].run], before.parent):
        create(before.client, twin.info.experiment_id, tags=twin.data.tags)
    publisher.finish("FINISHED", 1000 * CREATED)
    window = Window(uri, "lost")
    assert len(window.runs) == 3
    for candidate, result in zip(search.candidates, results, strict=True):
        assert window.points(candidate.run) == wanted_points(result.epochs)
    assert window.statuses() == ["FINISHED"] * 3


def test_searches_are_found_by_name_and_the_newest_first(
    storage: Path, uri: str, tmp_path: Path
) -> None:
    newest = Search(tmp_path, "newest", twists=1, space="efficientnet_b0")
    newest.plan = newest.plan.model_copy(update={"created": CREATED + 1000})
    newest.end(newest.candidates[0])
    newest.publisher(uri).sync_once()
    (row,) = trial_rows(tracking_uri=uri, all_trials=True)
    assert (row.search, row.frontier) == ("newest", False)
    empty = frontier_models("newest", tracking_uri=uri)
    assert len(empty) == 0 and list(empty.columns) == list(asdict(row))
    assert {"newest"} == {
        row.search for row in trial_rows(space="efficientnet_b0", tracking_uri=uri, all_trials=True)
    }
    with pytest.raises(RequestError, match=r"no search 'newset' at sqlite.*there are .*newest"):
        frontier_models("newset", tracking_uri=uri)
    with pytest.raises(RequestError, match=r"no search 'planned'.*of space efficientnet_b0"):
        frontier_models("planned", space="efficientnet_b0", tracking_uri=uri)


def test_a_publisher_that_nobody_waits_for_ends_nothing(tmp_path: Path) -> None:
    """Another one may have followed: what is still on its way arrives, and the runs' ends are the other's."""
    going, ended = threading.Event(), list[str]()

    class Slow(Background[Any]):
        def sync_once(self) -> None:
            assert going.wait(20)

        def _connect(self) -> Any:
            raise AssertionError

        def finish(self, status: str, end: int) -> int:
            ended.append(status)
            return 0

    slow = Slow(f"sqlite:///{tmp_path}/mlflow.db", "search", pytest.fail)
    slow.start()
    assert not slow.close(timeout=0.2)
    going.set()
    assert slow._thread
    slow._thread.join(20)
    assert ended == []
    prompt = Slow(f"sqlite:///{tmp_path}/mlflow.db", "search", pytest.fail)
    assert prompt.close(timeout=20)
    assert ended == ["FINISHED"]
