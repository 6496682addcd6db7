"""Tests publishing: search directories are published, and read back with MLflow's own client."""

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
    MODEL,
    OWNER,
    SQLALCHEMY,
    MlflowSearch,
    Search,
    epoch_records,
    expected_points,
    tracking_environment,
    wait_until,
)
from tinynet_search import TrackingError, frontier_models
from tinynet_search.cli.main import run as run_command
from tinynet_search.mlflow_client.connection import resolve_uri
from tinynet_search.plan.candidates import candidate_of
from tinynet_search.store.schema import FinalRow, FrontierRow
from tinynet_search.tracking.background import BackgroundPublisher
from tinynet_search.tracking.publisher import Publisher
from tinynet_search.tracking.queries import search_models

pytestmark = pytest.mark.filterwarnings(SQLALCHEMY)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with tracking_environment():
        yield


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder whose database all tests share, since creating one takes seconds."""
    return tmp_path_factory.mktemp("searches")


@pytest.fixture(scope="module")
def uri(storage: Path) -> str:
    return resolve_uri(None, None, str(storage))


def test_every_trial_and_epoch_is_published_once(storage: Path, uri: str) -> None:
    search = Search(storage, "arrives", trials=5)
    first, second, diverged, running, _ = search.candidates
    results = [search.end(first), search.end(second)]
    search.end(diverged, 2, failed=True)
    search.commit(running, 2)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        for _ in range(3):
            search.publisher(uri).sync_once()
        again = search.publisher(uri)
        again.sync_once()
        again.sync_once()
    assert (out.getvalue(), err.getvalue()) == ("", "")

    in_mlflow = MlflowSearch(uri, "arrives")
    assert set(in_mlflow.runs) == {first.run, second.run, diverged.run, running.run}
    real = ("c", "macs", "params", "resolution", "activation_bytes")
    for candidate, result in zip((first, second), results, strict=True):
        run = in_mlflow.runs[candidate.run]
        assert in_mlflow.points(candidate.run) == expected_points(result.epochs)
        assert (run.info.status, run.info.end_time) == ("FINISHED", 1000 * CREATED + 500_250)
        assert run.info.start_time == min(result.epochs[0].ts - 9500, 1000 * CREATED + 50_500)
        assert run.data.metrics["final_top1"] == result.top1
        figures = {key: run.data.metrics[key] for key in ("r", "d", "w", *real)}
        assert list(figures.values()) == [
            *candidate.spec.rdw,
            *(getattr(candidate.network, key) for key in real),
        ]
        assert {key: float(run.data.params[key]) for key in figures} == figures
        assert run.data.tags["mlflow.parentRunId"] == in_mlflow.parent.info.run_id
    assert (
        in_mlflow.runs[first.run].info.run_name
        == f"r0.86 d1.20 w1.00 · {first.network.resolution}px"
    )

    assert in_mlflow.points(running.run) == expected_points(epoch_records(running, 2))
    assert in_mlflow.runs[running.run].info.status == "RUNNING"
    failed = in_mlflow.runs[diverged.run]
    assert (failed.info.status, failed.data.tags["reason"]) == ("FAILED", "diverged")
    assert "loss nan" in failed.data.tags["detail"]
    assert "final_top1" not in failed.data.metrics

    search.commit(running, 3)
    again.sync_once()
    fourth = search.end(running)
    again.sync_once()
    later = MlflowSearch(uri, "arrives")
    assert later.points(running.run) == expected_points(fourth.epochs)
    assert later.runs[running.run].info.status == "FINISHED"


def test_parent_has_the_plan(storage: Path, uri: str) -> None:
    search = Search(storage, "planned")
    publisher = search.publisher(uri)
    assert publisher.close(60)
    parent = MlflowSearch(uri, "planned").parent
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


def test_longer_training_is_a_separate_run(storage: Path, uri: str) -> None:
    search = Search(storage, "longer")
    search.end(search.candidates[0])
    search.publisher(uri).sync_once()
    longer_plan = search.plan.model_copy(update={"recipe": search.plan.recipe_for(6)})
    longer = candidate_of(longer_plan, search.candidates[0].spec.network())
    search.end(longer)
    publisher = Publisher(search.store, longer_plan, uri, warn=pytest.fail)
    publisher.watch([longer])
    publisher.sync_once()
    assert set(MlflowSearch(uri, "longer").runs) == {search.candidates[0].run, longer.run}


def test_frontier_formula_and_finals(
    storage: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    search = Search(storage, "concluded", trials=4)
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
    before = MlflowSearch(uri, "concluded")
    frontier_tags = {
        run: (r.data.tags.get("frontier"), r.data.tags.get("pareto_rank"))
        for run, r in before.runs.items()
    }
    assert frontier_tags[a.run] == ("true", "1") and frontier_tags[b.run] == ("true", "2")
    assert frontier_tags[c.run] == ("false", None) and frontier_tags[final.run] == (None, None)
    assert (
        before.runs[final.run].data.tags["tinynet.kind"],
        before.runs[final.run].data.tags["label"],
    ) == ("final", "tiny formula")

    later = search.publisher(uri)
    later.watch([final])
    later.conclude(search.rows([c, a]), FORMULA_TEXT, labels)
    assert later.close(60)
    after = MlflowSearch(uri, "concluded")
    frontier_tags = {
        run: (r.data.tags.get("frontier"), r.data.tags.get("pareto_rank"))
        for run, r in after.runs.items()
    }
    assert (
        frontier_tags[c.run] == ("true", "1")
        and frontier_tags[a.run] == ("true", "2")
        and frontier_tags[b.run] == ("false", None)
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
    rows = search_models("concluded", tracking_uri=uri, all_trials=True).rows
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
    assert search_models("concluded", tracking_uri=uri).rows == on_frontier


def check_artifacts_and_registry(
    uri: str, in_mlflow: MlflowSearch, rows: list[FrontierRow]
) -> None:
    import mlflow
    from mlflow.artifacts import load_text

    mlflow.set_tracking_uri(uri)
    try:
        base = f"runs:/{in_mlflow.parent.info.run_id}"
        assert json.loads(load_text(f"{base}/frontier.json")) == [row.to_json() for row in rows]
        assert (
            load_text(f"{base}/frontier.csv").splitlines()[0]
            == "id,r,d,w,resolution,c,macs,params,top1,pareto_rank"
        )
        assert load_text(f"{base}/formula.json") == FORMULA_TEXT
        name = in_mlflow.parent.data.tags["tinynet.search"]
        for alias in ("champion", f"{OWNER}-{name}"):
            assert load_text(f"models:/{MODEL}@{alias}/formula.json") == FORMULA_TEXT
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    key = in_mlflow.parent.data.tags["tinynet.key"]
    assert (
        len(
            [
                v
                for v in in_mlflow.client.search_model_versions(f"name = '{MODEL}'")
                if v.tags["tinynet.key"] == key
            ]
        )
        == 1
    )


def test_thread_publishes_a_search_until_its_end(storage: Path, uri: str) -> None:
    search, warnings = Search(storage, "followed"), []
    first, second, _ = search.candidates
    publisher = search.publisher(uri, warnings)
    publisher.start(interval=0.05)
    wait_until(lambda: publisher.link is not None, 60)
    assert MlflowSearch(uri, "followed").parent.info.status == "RUNNING"
    search.commit(first, 1)
    wait_until(lambda: MlflowSearch(uri, "followed").statuses() == ["RUNNING"], 30)
    search.end(first)
    search.commit(second, 2)
    wait_until(lambda: MlflowSearch(uri, "followed").statuses() == ["FINISHED", "RUNNING"], 30)
    assert publisher.close(60, status="KILLED")
    stopped = MlflowSearch(uri, "followed")
    assert (stopped.parent.info.status, stopped.statuses()) == ("KILLED", ["FINISHED", "KILLED"])

    resumed = search.publisher(uri, warnings)
    resumed.start(interval=0.05)
    wait_until(lambda: MlflowSearch(uri, "followed").parent.info.status == "RUNNING", 60)
    wait_until(lambda: resumed.epochs_sent == 2, 30)
    assert MlflowSearch(uri, "followed").statuses() == ["FINISHED", "KILLED"]
    search.commit(second, 3)
    wait_until(lambda: MlflowSearch(uri, "followed").statuses() == ["FINISHED", "RUNNING"], 30)
    result = search.end(second)
    assert resumed.close(60)
    ended = MlflowSearch(uri, "followed")
    assert (ended.parent.info.status, ended.statuses()) == ("FINISHED", ["FINISHED", "FINISHED"])
    assert ended.points(second.run) == expected_points(result.epochs)
    assert warnings == []


def test_lost_responses_leave_no_duplicate(
    storage: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server creates a run, its response is lost, and the client repeats the request.

    This happens as a retry within a call, and as an error.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    search, create, calls = Search(storage, "lost"), MlflowClient.create_run, [0]

    def unreliable(self: MlflowClient, *args: Any, **options: Any) -> Any:
        calls[0] += 1
        run = create(self, *args, **options)
        if calls[0] % 2:
            raise MlflowException("the response was lost")
        return create(self, *args, **options) or run

    monkeypatch.setattr(MlflowClient, "create_run", unreliable)
    results = [search.end(candidate) for candidate in search.candidates]
    publisher, failures = search.publisher(uri), 0
    for _ in range(10):
        try:
            publisher.sync_once()
            break
        except TrackingError as error:
            failures += 1
            assert "the response was lost" in str(error)
            publisher = search.publisher(uri)
    assert failures == 2
    # A further duplicate of a request that the server executes late: the last query detects it.
    monkeypatch.undo()
    before = MlflowSearch(uri, "lost")
    for run in (before.runs[search.candidates[0].run], before.parent):
        create(before.client, run.info.experiment_id, tags=run.data.tags)
    publisher.finish("FINISHED", 1000 * CREATED)
    in_mlflow = MlflowSearch(uri, "lost")
    assert len(in_mlflow.runs) == 3
    for candidate, result in zip(search.candidates, results, strict=True):
        assert in_mlflow.points(candidate.run) == expected_points(result.epochs)
    assert in_mlflow.statuses() == ["FINISHED"] * 3


def test_search_is_selected_by_name_or_as_the_newest(
    storage: Path, uri: str, tmp_path: Path
) -> None:
    newest = Search(tmp_path, "newest", trials=1, space="efficientnet_b0")
    newest.plan = newest.plan.model_copy(update={"created": CREATED + 1000})
    newest.end(newest.candidates[0])
    newest.publisher(uri).sync_once()
    (row,) = search_models(tracking_uri=uri, all_trials=True).rows
    assert (row.search, row.frontier) == ("newest", False)
    empty = frontier_models("newest", tracking_uri=uri)
    assert len(empty) == 0 and list(empty.columns) == list(asdict(row))
    assert {"newest"} == {
        row.search
        for row in search_models(space="efficientnet_b0", tracking_uri=uri, all_trials=True).rows
    }
    with pytest.raises(
        RequestError, match=r"no search 'newset' at sqlite.*expected one of .*newest"
    ):
        frontier_models("newset", tracking_uri=uri)
    with pytest.raises(RequestError, match=r"no search 'planned'.*of space efficientnet_b0"):
        frontier_models("planned", space="efficientnet_b0", tracking_uri=uri)


def test_abandoned_publisher_does_not_end_runs(tmp_path: Path) -> None:
    """Another publisher may have started, which ends the runs."""
    released, ended = threading.Event(), list[str]()

    class Slow(BackgroundPublisher[Any]):
        def sync_once(self) -> None:
            assert released.wait(20)

        def _connect(self) -> Any:
            raise AssertionError

        def finish(self, status: str, end: int) -> int:
            ended.append(status)
            return 0

    slow = Slow(f"sqlite:///{tmp_path}/mlflow.db", "search", "tinynet sync", pytest.fail)
    slow.start()
    assert not slow.close(timeout=0.2)
    released.set()
    assert slow._thread
    slow._thread.join(20)
    assert ended == []
    fast = Slow(f"sqlite:///{tmp_path}/mlflow.db", "search", "tinynet sync", pytest.fail)
    assert fast.close(timeout=20)
    assert ended == ["FINISHED"]
