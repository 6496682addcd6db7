"""Trainings whose history changed: epochs done again, failed trials trained anew. The run follows the directory."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.tracking.helpers import (
    CREATED,
    SQLALCHEMY,
    Search,
    Window,
    calm,
    epoch_records,
    wanted_points,
)
from tinynet_search.errors import TrackingError
from tinynet_search.mlflow_client.connection import resolve_uri
from tinynet_search.store.directory import Candidate
from tinynet_search.store.train_job import TrainJob
from tinynet_search.tracking.job_publisher import JobPublisher
from tinynet_search.tracking.queries import trial_rows
from trainables.result import EpochRecord

pytestmark = pytest.mark.filterwarnings(SQLALCHEMY)
LATER = 1000 * CREATED + 10**6


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with calm():
        yield


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("searches")


@pytest.fixture(scope="module")
def uri(storage: Path) -> str:
    return resolve_uri(None, None, str(storage))


def published(search: Search, uri: str, *frontier: Candidate, die: bool = False) -> None:
    """By a publisher of its own, with this conclusion where one is given; one that dies does not finish."""
    publisher = search.publisher(uri)
    if frontier:
        publisher.conclude(search.rows(list(frontier)), None, [])
    publisher.sync_once()
    if not die:
        publisher.finish("FINISHED", LATER)


def set_aside(search: Search, candidate: Candidate) -> None:
    """As ``--retry failed`` leaves a trial."""
    search.store.folder.remove(f"results/{candidate.run}.json")
    search.store.folder.remove(f"trials/{candidate.run}")


def runs_of(window: Window, lifecycle: int) -> int:
    mine = f"tags.`mlflow.parentRunId` = '{window.parent.info.run_id}'"
    return len(
        window.client.search_runs([window.parent.info.experiment_id], mine, run_view_type=lifecycle)
    )


@pytest.mark.parametrize("restarted", [False, True])
def test_an_epoch_done_again_after_damage(storage: Path, uri: str, restarted: bool) -> None:
    search = Search(storage, f"damaged-{restarted}")
    a, b, c = search.candidates
    publisher = search.publisher(uri)
    for candidate in (a, b, c):
        search.commit(candidate, 3)
    publisher.sync_once()
    publisher = search.publisher(uri) if restarted else publisher
    # The newest checkpoint of each is damaged: one goes on, one ends, and one is back at two epochs and may do the third again.
    search.commit(a, 4, again=3)
    ended = search.end(b, again=3)
    search.store.folder.remove(f"trials/{c.run}/epoch-0003")
    search.commit(c, 2)
    publisher.sync_once()
    window = Window(uri, f"damaged-{restarted}")
    assert window.points(a.run) == wanted_points(epoch_records(a, 4, again=3))
    assert window.points(b.run) == wanted_points(ended.epochs)
    assert window.points(c.run) == wanted_points(epoch_records(c, 3))
    assert window.statuses() == ["FINISHED", "RUNNING", "RUNNING"]
    publisher = search.publisher(uri) if restarted else publisher
    search.commit(c, 4, again=3)
    publisher.sync_once()
    publisher.finish("KILLED", LATER)
    window = Window(uri, f"damaged-{restarted}")
    assert window.points(c.run) == wanted_points(epoch_records(c, 4, again=3))
    assert (runs_of(window, 1), runs_of(window, 2)) == (3, 3)  # active, deleted


@pytest.mark.parametrize("seen_between", [False, True])
def test_a_failed_trial_trained_again(storage: Path, uri: str, seen_between: bool) -> None:
    """Whether MLflow is up while the trial trains again, or sees only that it has ended otherwise."""
    name = f"retried-{seen_between}"
    search = Search(storage, name)
    a, b, _ = search.candidates
    search.end(a)
    search.end(b, 3, failed=True)
    first = search.publisher(uri)
    first.conclude(search.rows([a]), None, [])
    first.sync_once()
    first.finish("FINISHED", LATER)
    kept = Window(uri, name).runs[a.run].info.run_id

    set_aside(search, b)
    publisher = search.publisher(uri)
    publisher.sync_once()
    assert set(Window(uri, name).runs) == {a.run, b.run}
    if seen_between:
        search.commit(b, 1, again=1)
        publisher.sync_once()
        window = Window(uri, name)
        assert (
            window.runs[b.run].info.status == "RUNNING"
            and "reason" not in window.runs[b.run].data.tags
        )
        assert window.points(b.run) == wanted_points(epoch_records(b, 1, again=1))
    result = search.end(b, again=1)
    publisher.conclude(search.rows([b]), None, [])
    publisher.sync_once()
    publisher.finish("FINISHED", LATER)
    window = Window(uri, name)
    assert window.points(b.run) == wanted_points(result.epochs)
    assert {run: r.data.tags["frontier"] for run, r in window.runs.items()} == {
        a.run: "false",
        b.run: "true",
    }
    assert (window.statuses(), window.runs[a.run].info.run_id) == (["FINISHED", "FINISHED"], kept)
    assert (runs_of(window, 1), runs_of(window, 2)) == (2, 1)


def test_a_search_published_whole_and_retried_while_mlflow_was_down(
    storage: Path, uri: str
) -> None:
    """Its results have the same names again, and another content: the seal on the parent does not fit."""
    search = Search(storage, "sealed")
    a, b, _ = search.candidates
    search.end(a)
    search.end(b, 3, failed=True)
    published(search, uri)
    set_aside(search, b)
    result = search.end(b, again=2)
    published(search, uri)
    assert Window(uri, "sealed").points(b.run) == wanted_points(result.epochs)
    third = search.publisher(uri)
    third.sync_once()
    assert third.epochs_sent == 0


def test_a_seal_is_broken_before_the_next_trial(storage: Path, uri: str) -> None:
    """A driver that dies right after it began a trial of a search that was whole leaves no second run of it."""
    search = Search(storage, "broken")
    a, b, _ = search.candidates
    search.end(a)
    published(search, uri)
    assert Window(uri, "broken").parent.data.tags["tinynet.whole"]
    search.commit(b, 1)
    second = search.publisher(uri)
    second.sync_once()
    assert not Window(uri, "broken").parent.data.tags["tinynet.whole"]
    second.finish("KILLED", LATER)
    assert Window(uri, "broken").statuses() == ["FINISHED", "KILLED"]
    ended = search.end(b)
    published(search, uri)
    window = Window(uri, "broken")
    assert (window.points(b.run), window.statuses()) == (
        wanted_points(ended.epochs),
        ["FINISHED", "FINISHED"],
    )


def test_a_trial_that_ends_between_two_looks_is_not_taken_for_sealed(
    storage: Path, uri: str
) -> None:
    """A longer search of short trials: what is finished when its candidates are first looked at is still new to MLflow."""
    search = Search(storage, "quick")
    a, b, _ = search.candidates
    search.end(a)
    published(search, uri)
    sealed = Window(uri, "quick").parent.data.tags["tinynet.whole"]
    second = search.publisher(uri, watched=[a])
    second.sync_once()
    result = search.end(b)
    second.watch([b])
    second.finish("KILLED", LATER)  # as where the last look fails
    assert Window(uri, "quick").parent.data.tags["tinynet.whole"] == sealed
    second.sync_once()
    second.conclude(search.rows([b]), None, [])
    second.sync_once()
    second.finish("FINISHED", LATER)
    window = Window(uri, "quick")
    assert window.points(b.run) == wanted_points(result.epochs)
    assert {run: r.data.tags["frontier"] for run, r in window.runs.items()} == {
        a.run: "false",
        b.run: "true",
    }


def test_two_publishers_that_delete_each_others_doubles(storage: Path, uri: str) -> None:
    """As where two drivers on an object store see each other late: nothing is sealed that is not there, and the next look repairs it."""
    search = Search(storage, "pair")
    a, b, _ = search.candidates
    results = {c.run: search.end(c) for c in (a, b)}
    first = search.publisher(uri)
    first.sync_once()
    doomed = Window(uri, "pair").runs[a.run].info.run_id
    first._runs.client.delete_run(doomed)  # pyright: ignore[reportOptionalMemberAccess]
    with pytest.raises(
        TrackingError, match="lost 1 of this search's runs, deleted by another publisher"
    ):
        first.finish("FINISHED", LATER)
    window = Window(uri, "pair")
    assert (window.parent.info.status, window.parent.data.tags["tinynet.whole"]) == ("FINISHED", "")
    published(search, uri)
    window = Window(uri, "pair")
    assert {run: window.points(run) for run in window.runs} == {
        run: wanted_points(r.epochs) for run, r in results.items()
    }
    assert window.parent.data.tags["tinynet.whole"]


def whole(storage: Path, uri: str, name: str) -> tuple[Search, Candidate, Candidate]:
    """A search of two results, published whole; the first of them is its frontier."""
    search = Search(storage, name)
    a, b, _ = search.candidates
    for candidate in (a, b):
        search.end(candidate)
    published(search, uri, a)
    return search, a, b


def on_frontier(uri: str, name: str) -> set[str]:
    """By the tags of the runs and by the query of the frontier, which must agree."""
    shown = {row.run_id for row in trial_rows(name, tracking_uri=uri)}
    tagged = {
        r.info.run_id: run
        for run, r in Window(uri, name).runs.items()
        if r.data.tags.get("frontier") == "true"
    }
    assert shown == tagged.keys()
    return set(tagged.values())


def test_whoever_changes_a_search_breaks_its_seal(storage: Path, uri: str) -> None:
    """Also a publisher that began before another sealed it."""
    search = Search(storage, "late")
    a, b, _ = search.candidates
    search.end(a)
    late = search.publisher(uri, watched=[b])
    late.sync_once()
    published(search, uri, a)
    assert Window(uri, "late").parent.data.tags["tinynet.whole"]
    search.commit(b, 1)
    late.sync_once()
    assert Window(uri, "late").parent.data.tags["tinynet.whole"] == ""


def test_a_double_under_a_seal_is_deleted(storage: Path, uri: str) -> None:
    """A creation whose answer was lost is committed after the last look."""
    search, a, _ = whole(storage, uri, "doubled")
    window = Window(uri, "doubled")
    run = window.runs[a.run]
    window.client.create_run(run.info.experiment_id, tags=run.data.tags)
    published(search, uri, a)
    window = Window(uri, "doubled")
    assert (window.runs[a.run].info.run_id, window.statuses()) == (
        run.info.run_id,
        ["FINISHED"] * 2,
    )


def test_marks_that_a_dead_driver_left(storage: Path, uri: str) -> None:
    """Of another conclusion: as of a run with fewer epochs that had nothing to train."""
    search, a, b = whole(storage, uri, "marks")
    published(search, uri, b, die=True)
    assert on_frontier(uri, "marks") == {b.run}
    published(search, uri, a)
    assert on_frontier(uri, "marks") == {a.run}


def test_a_run_that_somebody_deleted(storage: Path, uri: str) -> None:
    search, a, b = whole(storage, uri, "deleted")
    window = Window(uri, "deleted")
    window.client.delete_run(window.runs[b.run].info.run_id)
    published(search, uri, b)
    assert on_frontier(uri, "deleted") == {b.run}
    assert Window(uri, "deleted").runs.keys() == {a.run, b.run}


def test_another_publishers_double_is_marked_before_it_is_sealed(storage: Path, uri: str) -> None:
    search = Search(storage, "swapped")
    a, b, _ = search.candidates
    for candidate in (a, b):
        search.end(candidate)
    publisher = search.publisher(uri)
    publisher.conclude(search.rows([a]), None, [])
    publisher.sync_once()
    from mlflow.entities import Metric, Param

    window = Window(uri, "swapped")
    ours = window.runs[a.run]
    theirs = window.client.create_run(
        ours.info.experiment_id, tags=ours.data.tags | {"frontier": "false"}
    )
    window.client.log_batch(
        theirs.info.run_id,
        params=[Param("r", "1")],
        metrics=[Metric(k, v, 0, 0) for k, v in ours.data.metrics.items()],
    )
    window.client.set_terminated(theirs.info.run_id)
    window.client.delete_run(ours.info.run_id)
    publisher.finish("FINISHED", LATER)
    assert on_frontier(uri, "swapped") == {a.run}
    assert Window(uri, "swapped").runs[a.run].info.run_id == theirs.info.run_id


class JobWindow:
    """A job's only run, and its points."""

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
def test_a_job_follows_its_directory_too(storage: Path, uri: str, restarted: bool) -> None:
    name = f"job-{restarted}"
    search = Search(storage, name, twists=1)
    (candidate,) = search.candidates
    job = TrainJob(name, "a-network", candidate.spec, 400, 100, CREATED)
    publisher = JobPublisher(search.store, [job], uri, warn=pytest.fail)

    def synced() -> JobWindow:
        nonlocal publisher
        publisher = (
            JobPublisher(search.store, [job], uri, warn=pytest.fail) if restarted else publisher
        )
        publisher.sync_once()
        return JobWindow(uri, name)

    search.commit(candidate, 3)
    assert synced().points == stamps(epoch_records(candidate, 3))
    search.commit(candidate, 4, again=3)
    assert synced().points == stamps(epoch_records(candidate, 4, again=3))
    result = search.end(candidate, 3, failed=True)
    window = synced()
    assert (window.points, window.run.info.status) == (stamps(result.epochs), "FAILED")
    set_aside(search, candidate)
    result = search.end(candidate, again=1)
    publisher = JobPublisher(search.store, [job], uri, warn=pytest.fail)
    window = synced()
    assert (window.points, window.run.info.status) == (stamps(result.epochs), "FINISHED")
    before = publisher.epochs_sent
    synced()
    assert publisher.epochs_sent == (0 if restarted else before)
