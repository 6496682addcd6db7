"""Tests that runs follow the directory when the history of a training changes.

Epochs may be repeated, and failed trials trained again.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.tracking.helpers import (
    CREATED,
    SQLALCHEMY,
    MlflowSearch,
    Search,
    epoch_records,
    expected_points,
    tracking_environment,
)
from tinynet_search.errors import TrackingError
from tinynet_search.mlflow_client.connection import resolve_uri
from tinynet_search.store.directory import Candidate
from tinynet_search.store.train_job import TrainJob
from tinynet_search.tracking.job_publisher import JobPublisher
from tinynet_search.tracking.queries import search_models
from trainables.result import EpochRecord

pytestmark = pytest.mark.filterwarnings(SQLALCHEMY)
LATER = 1000 * CREATED + 10**6


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with tracking_environment():
        yield


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("searches")


@pytest.fixture(scope="module")
def uri(storage: Path) -> str:
    return resolve_uri(None, None, str(storage))


def publish(search: Search, uri: str, *frontier: Candidate, finish: bool = True) -> None:
    """Publish a search with a new publisher.

    Args:
        search: the search.
        uri: MLflow's tracking URI.
        frontier: the conclusion; empty for no conclusion.
        finish: whether the publisher finishes the search.
    """
    publisher = search.publisher(uri)
    if frontier:
        publisher.conclude(search.rows(list(frontier)), None, [])
    publisher.sync_once()
    if finish:
        publisher.finish("FINISHED", LATER)


def reset(search: Search, candidate: Candidate) -> None:
    """Remove the files of a trial, as ``--retry failed`` does."""
    search.store.folder.remove(f"results/{candidate.run}.json")
    search.store.folder.remove(f"trials/{candidate.run}")


def count_runs(in_mlflow: MlflowSearch, lifecycle: int) -> int:
    query = f"tags.`mlflow.parentRunId` = '{in_mlflow.parent.info.run_id}'"
    return len(
        in_mlflow.client.search_runs(
            [in_mlflow.parent.info.experiment_id], query, run_view_type=lifecycle
        )
    )


@pytest.mark.parametrize("restarted", [False, True])
def test_epoch_is_repeated_after_damage(storage: Path, uri: str, restarted: bool) -> None:
    search = Search(storage, f"damaged-{restarted}")
    a, b, c = search.candidates
    publisher = search.publisher(uri)
    for candidate in (a, b, c):
        search.commit(candidate, 3)
    publisher.sync_once()
    publisher = search.publisher(uri) if restarted else publisher
    # The newest checkpoint of each is damaged: one trial continues, one ends, and one is back at
    # two epochs and has not repeated the third.
    search.commit(a, 4, again=3)
    ended = search.end(b, again=3)
    search.store.folder.remove(f"trials/{c.run}/epoch-0003")
    search.commit(c, 2)
    publisher.sync_once()
    in_mlflow = MlflowSearch(uri, f"damaged-{restarted}")
    assert in_mlflow.points(a.run) == expected_points(epoch_records(a, 4, again=3))
    assert in_mlflow.points(b.run) == expected_points(ended.epochs)
    assert in_mlflow.points(c.run) == expected_points(epoch_records(c, 3))
    assert in_mlflow.statuses() == ["FINISHED", "RUNNING", "RUNNING"]
    publisher = search.publisher(uri) if restarted else publisher
    search.commit(c, 4, again=3)
    publisher.sync_once()
    publisher.finish("KILLED", LATER)
    in_mlflow = MlflowSearch(uri, f"damaged-{restarted}")
    assert in_mlflow.points(c.run) == expected_points(epoch_records(c, 4, again=3))
    assert (count_runs(in_mlflow, 1), count_runs(in_mlflow, 2)) == (3, 3)  # active, deleted


@pytest.mark.parametrize("published_between", [False, True])
def test_failed_trial_is_trained_again(storage: Path, uri: str, published_between: bool) -> None:
    """The trial is published while it trains again, or only after it has ended differently."""
    name = f"retried-{published_between}"
    search = Search(storage, name)
    a, b, _ = search.candidates
    search.end(a)
    search.end(b, 3, failed=True)
    first = search.publisher(uri)
    first.conclude(search.rows([a]), None, [])
    first.sync_once()
    first.finish("FINISHED", LATER)
    kept = MlflowSearch(uri, name).runs[a.run].info.run_id

    reset(search, b)
    publisher = search.publisher(uri)
    publisher.sync_once()
    assert set(MlflowSearch(uri, name).runs) == {a.run, b.run}
    if published_between:
        search.commit(b, 1, again=1)
        publisher.sync_once()
        in_mlflow = MlflowSearch(uri, name)
        assert (
            in_mlflow.runs[b.run].info.status == "RUNNING"
            and "reason" not in in_mlflow.runs[b.run].data.tags
        )
        assert in_mlflow.points(b.run) == expected_points(epoch_records(b, 1, again=1))
    result = search.end(b, again=1)
    publisher.conclude(search.rows([b]), None, [])
    publisher.sync_once()
    publisher.finish("FINISHED", LATER)
    in_mlflow = MlflowSearch(uri, name)
    assert in_mlflow.points(b.run) == expected_points(result.epochs)
    assert {run: r.data.tags["frontier"] for run, r in in_mlflow.runs.items()} == {
        a.run: "false",
        b.run: "true",
    }
    assert (in_mlflow.statuses(), in_mlflow.runs[a.run].info.run_id) == (
        ["FINISHED", "FINISHED"],
        kept,
    )
    assert (count_runs(in_mlflow, 1), count_runs(in_mlflow, 2)) == (2, 1)


def test_complete_search_is_retried_while_mlflow_is_down(storage: Path, uri: str) -> None:
    """The new results have the same names and other contents, so the parent's digest differs."""
    search = Search(storage, "complete")
    a, b, _ = search.candidates
    search.end(a)
    search.end(b, 3, failed=True)
    publish(search, uri)
    reset(search, b)
    result = search.end(b, again=2)
    publish(search, uri)
    assert MlflowSearch(uri, "complete").points(b.run) == expected_points(result.epochs)
    third = search.publisher(uri)
    third.sync_once()
    assert third.epochs_sent == 0


def test_digest_is_removed_before_the_next_trial(storage: Path, uri: str) -> None:
    """A driver that dies right after it starts a trial of a complete search leaves no duplicate."""
    search = Search(storage, "broken")
    a, b, _ = search.candidates
    search.end(a)
    publish(search, uri)
    assert MlflowSearch(uri, "broken").parent.data.tags["tinynet.whole"]
    search.commit(b, 1)
    second = search.publisher(uri)
    second.sync_once()
    assert not MlflowSearch(uri, "broken").parent.data.tags["tinynet.whole"]
    second.finish("KILLED", LATER)
    assert MlflowSearch(uri, "broken").statuses() == ["FINISHED", "KILLED"]
    ended = search.end(b)
    publish(search, uri)
    in_mlflow = MlflowSearch(uri, "broken")
    assert (in_mlflow.points(b.run), in_mlflow.statuses()) == (
        expected_points(ended.epochs),
        ["FINISHED", "FINISHED"],
    )


def test_trial_that_ends_between_two_passes_is_published(storage: Path, uri: str) -> None:
    """A trial that has ended before its candidate is first checked is still new to MLflow."""
    search = Search(storage, "quick")
    a, b, _ = search.candidates
    search.end(a)
    publish(search, uri)
    digest = MlflowSearch(uri, "quick").parent.data.tags["tinynet.whole"]
    second = search.publisher(uri, watched=[a])
    second.sync_once()
    result = search.end(b)
    second.watch([b])
    second.finish("KILLED", LATER)  # as if the last pass had failed
    assert MlflowSearch(uri, "quick").parent.data.tags["tinynet.whole"] == digest
    second.sync_once()
    second.conclude(search.rows([b]), None, [])
    second.sync_once()
    second.finish("FINISHED", LATER)
    in_mlflow = MlflowSearch(uri, "quick")
    assert in_mlflow.points(b.run) == expected_points(result.epochs)
    assert {run: r.data.tags["frontier"] for run, r in in_mlflow.runs.items()} == {
        a.run: "false",
        b.run: "true",
    }


def test_publisher_detects_runs_deleted_by_another_publisher(storage: Path, uri: str) -> None:
    """This happens if two drivers on an object store detect each other late.

    A search with a deleted run is not marked as complete, and the next publisher repairs it.
    """
    search = Search(storage, "pair")
    a, b, _ = search.candidates
    results = {c.run: search.end(c) for c in (a, b)}
    first = search.publisher(uri)
    first.sync_once()
    run_id = MlflowSearch(uri, "pair").runs[a.run].info.run_id
    first._runs.client.delete_run(run_id)  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(
        TrackingError, match="lost 1 of this search's runs, deleted by another publisher"
    ):
        first.finish("FINISHED", LATER)
    in_mlflow = MlflowSearch(uri, "pair")
    assert (in_mlflow.parent.info.status, in_mlflow.parent.data.tags["tinynet.whole"]) == (
        "FINISHED",
        "",
    )
    publish(search, uri)
    in_mlflow = MlflowSearch(uri, "pair")
    assert {run: in_mlflow.points(run) for run in in_mlflow.runs} == {
        run: expected_points(r.epochs) for run, r in results.items()
    }
    assert in_mlflow.parent.data.tags["tinynet.whole"]


def complete_search(storage: Path, uri: str, name: str) -> tuple[Search, Candidate, Candidate]:
    """Publish a search with two results completely; the first of them is its frontier."""
    search = Search(storage, name)
    a, b, _ = search.candidates
    for candidate in (a, b):
        search.end(candidate)
    publish(search, uri, a)
    return search, a, b


def on_frontier(uri: str, name: str) -> set[str]:
    """Return the runs on the frontier, by their tags and by the query, which must agree."""
    queried = {row.run_id for row in search_models(name, tracking_uri=uri).rows}
    tagged = {
        r.info.run_id: run
        for run, r in MlflowSearch(uri, name).runs.items()
        if r.data.tags.get("frontier") == "true"
    }
    assert queried == tagged.keys()
    return set(tagged.values())


def test_any_change_of_a_search_removes_the_digest(storage: Path, uri: str) -> None:
    """This includes changes by a publisher that started before another one wrote the digest."""
    search = Search(storage, "late")
    a, b, _ = search.candidates
    search.end(a)
    late = search.publisher(uri, watched=[b])
    late.sync_once()
    publish(search, uri, a)
    assert MlflowSearch(uri, "late").parent.data.tags["tinynet.whole"]
    search.commit(b, 1)
    late.sync_once()
    assert MlflowSearch(uri, "late").parent.data.tags["tinynet.whole"] == ""


def test_duplicate_in_a_complete_search_is_deleted(storage: Path, uri: str) -> None:
    """The server executes a creation whose response was lost after the last query."""
    search, a, _ = complete_search(storage, uri, "duplicate")
    in_mlflow = MlflowSearch(uri, "duplicate")
    run = in_mlflow.runs[a.run]
    in_mlflow.client.create_run(run.info.experiment_id, tags=run.data.tags)
    publish(search, uri, a)
    in_mlflow = MlflowSearch(uri, "duplicate")
    assert (in_mlflow.runs[a.run].info.run_id, in_mlflow.statuses()) == (
        run.info.run_id,
        ["FINISHED"] * 2,
    )


def test_tags_of_a_driver_that_died_are_replaced(storage: Path, uri: str) -> None:
    """The tags belong to another conclusion, such as that of a run with fewer epochs."""
    search, a, b = complete_search(storage, uri, "marks")
    publish(search, uri, b, finish=False)
    assert on_frontier(uri, "marks") == {b.run}
    publish(search, uri, a)
    assert on_frontier(uri, "marks") == {a.run}


def test_deleted_run_is_created_again(storage: Path, uri: str) -> None:
    search, a, b = complete_search(storage, uri, "deleted")
    in_mlflow = MlflowSearch(uri, "deleted")
    in_mlflow.client.delete_run(in_mlflow.runs[b.run].info.run_id)
    publish(search, uri, b)
    assert on_frontier(uri, "deleted") == {b.run}
    assert MlflowSearch(uri, "deleted").runs.keys() == {a.run, b.run}


def test_duplicate_of_another_publisher_is_tagged(storage: Path, uri: str) -> None:
    """Its frontier tags are set before the search is marked as complete."""
    search = Search(storage, "replaced")
    a, b, _ = search.candidates
    for candidate in (a, b):
        search.end(candidate)
    publisher = search.publisher(uri)
    publisher.conclude(search.rows([a]), None, [])
    publisher.sync_once()
    from mlflow.entities import Metric, Param

    in_mlflow = MlflowSearch(uri, "replaced")
    run = in_mlflow.runs[a.run]
    duplicate = in_mlflow.client.create_run(
        run.info.experiment_id, tags=run.data.tags | {"frontier": "false"}
    )
    in_mlflow.client.log_batch(
        duplicate.info.run_id,
        params=[Param("r", "1")],
        metrics=[Metric(k, v, 0, 0) for k, v in run.data.metrics.items()],
    )
    in_mlflow.client.set_terminated(duplicate.info.run_id)
    in_mlflow.client.delete_run(run.info.run_id)
    publisher.finish("FINISHED", LATER)
    assert on_frontier(uri, "replaced") == {a.run}
    assert MlflowSearch(uri, "replaced").runs[a.run].info.run_id == duplicate.info.run_id


class MlflowJob:
    """The only run of a job, and its points."""

    def __init__(self, uri: str, name: str) -> None:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiments = [
            e.experiment_id
            for e in client.search_experiments(filter_string="name LIKE 'tinynet-%'")
        ]
        (self.run,) = client.search_runs(experiments, f"tags.`tinynet.job` = '{name}'")
        self.points = sorted(
            (m.step, m.timestamp) for m in client.get_metric_history(self.run.info.run_id, "top1")
        )


def stamps(epochs: Sequence[EpochRecord]) -> list[tuple[int, int]]:
    return [(epoch.epoch, epoch.ts) for epoch in epochs]


@pytest.mark.parametrize("restarted", [False, True])
def test_run_of_a_job_follows_the_directory(storage: Path, uri: str, restarted: bool) -> None:
    name = f"job-{restarted}"
    search = Search(storage, name, trials=1)
    (candidate,) = search.candidates
    job = TrainJob(name, "me", "a-network", candidate.spec, 400, 100, ["a", "b"], CREATED)
    publisher = JobPublisher(search.store, [job], uri, warn=pytest.fail)

    def sync() -> MlflowJob:
        nonlocal publisher
        publisher = (
            JobPublisher(search.store, [job], uri, warn=pytest.fail) if restarted else publisher
        )
        publisher.sync_once()
        return MlflowJob(uri, name)

    search.commit(candidate, 3)
    first = sync()
    assert first.points == stamps(epoch_records(candidate, 3))
    assert [first.run.data.tags[tag] for tag in ("tinynet.owner", "mlflow.user")] == ["me", "me"]
    search.commit(candidate, 4, again=3)
    assert sync().points == stamps(epoch_records(candidate, 4, again=3))
    result = search.end(candidate, 3, failed=True)
    in_mlflow = sync()
    assert (in_mlflow.points, in_mlflow.run.info.status) == (stamps(result.epochs), "FAILED")
    reset(search, candidate)
    result = search.end(candidate, again=1)
    publisher = JobPublisher(search.store, [job], uri, warn=pytest.fail)
    in_mlflow = sync()
    assert (in_mlflow.points, in_mlflow.run.info.status) == (stamps(result.epochs), "FINISHED")
    before = publisher.epochs_sent
    sync()
    assert publisher.epochs_sent == (0 if restarted else before)
