"""Publishing over the wire: servers that do not answer, hang or come back, and a real one."""

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search_spaces import get_space
from tests.tracking.helpers import (
    SQLALCHEMY,
    Search,
    Window,
    calm,
    free_port,
    wait_until,
    wanted_points,
)
from tests.tracking.servers import mlflow_server
from tests.train.helpers import LABEL, JobRuns, arguments, trained
from tinynet_search import TrackingError, frontier_models
from tinynet_search.export import load_exported
from tinynet_search.formula.files import read_text
from tinynet_search.formula.tiny_formula import TinyFormula
from tinynet_search.plan.candidates import candidate_of
from tinynet_search.store.directory import FINALS, FORMULA, FRONTIER
from tinynet_search.store.schema import FinalRow
from tinynet_search.tracking.queries import trial_rows
from tinynet_search.tracking.sync import sync_search

pytestmark = pytest.mark.filterwarnings(SQLALCHEMY)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with calm():
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server with a database and artifacts of its own."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as url:
        yield url


def test_an_unreachable_server_is_named_once_and_never_in_the_way(tmp_path: Path) -> None:
    where = f"127.0.0.1:{free_port()}"
    search, said = Search(tmp_path, "unreachable"), []
    publisher = search.publisher(f"http://ann:secret@{where}", said)
    publisher.start(interval=0.05)
    search.end(search.candidates[0])
    wait_until(lambda: bool(said), 30)
    time.sleep(1.5)
    started = time.monotonic()
    assert publisher.close(20) is False
    assert time.monotonic() - started < 20
    (line,) = said
    assert (
        f"MLflow at http://{where} does not answer (Connection refused)" in line
        and "tinynet sync" in line
    )
    assert "secret" not in line and "\n" not in line
    with pytest.raises(
        TrackingError,
        match=rf"^MLflow at http://{re.escape(where)} does not answer \(Connection refused\)$",
    ):
        frontier_models(tracking_uri=f"http://ann:secret@{where}")
    with pytest.raises(TrackingError, match=where):
        sync_search(search.store, f"http://{where}")


def test_a_server_that_hangs_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        said: list[str] = []
        publisher = Search(tmp_path, "hangs").publisher(
            f"http://127.0.0.1:{deaf.getsockname()[1]}", said
        )
        publisher.start(interval=0.05)
        started = time.monotonic()
        assert publisher.close(0.5) is False
        assert time.monotonic() - started < 2
        wait_until(lambda: bool(said), 20)
        assert "does not answer (timed out)" in said[0]
        assert publisher.close(20) is False


def test_sync_catches_up_on_a_real_server(tmp_path: Path, server: str) -> None:
    search = Search(tmp_path, "caught-up", space="efficientnet_b0", twists=4)
    a, b, c, _ = search.candidates
    results = {candidate.run: search.end(candidate) for candidate in (a, b)}
    search.commit(c, 2)
    # What the driver could not send:
    down = search.publisher(f"http://127.0.0.1:{free_port()}")
    assert down.close(20) is False

    first = sync_search(search.store, server)
    assert (first.search, first.runs, first.epochs) == ("caught-up", 3, 10)
    assert first.link is not None and first.link.startswith(f"{server}/#/experiments/")
    stopped = Window(server, "caught-up")
    assert (stopped.parent.info.status, stopped.statuses()) == (
        "KILLED",
        ["FINISHED", "FINISHED", "KILLED"],
    )

    for candidate in search.candidates[2:]:
        results[candidate.run] = search.end(candidate)
    final = candidate_of(
        search.plan,
        get_space("efficientnet_b0").network((0.9, 0.9, 0.9), 10),
        kind="final",
        epochs=5,
    )
    results[final.run] = search.end(final)
    row = FinalRow(run=final.run, label="inverse giant", c=0.5, spec=final.spec)
    search.store.write_rows(FINALS, [row])
    search.store.write_rows(FRONTIER, search.rows([b, c]))
    search.store.folder.write(FORMULA, published().encode())
    # The trial that was under way is sent from its start, as a new publisher knows nothing.
    assert sync_search(search.store, server).epochs == 4 + 4 + 5
    whole = Window(server, "caught-up")
    assert sync_search(search.store, server).epochs == 0
    again = Window(server, "caught-up")
    for window in (whole, again):
        assert (window.parent.info.status, window.statuses()) == ("FINISHED", ["FINISHED"] * 5)
        assert {run: window.points(run) for run in window.runs} == {
            run: wanted_points(r.epochs) for run, r in results.items()
        }
    assert again.parent.to_dictionary() == whole.parent.to_dictionary()
    assert again.runs[final.run].data.tags["label"] == "inverse giant"
    models = frontier_models("caught-up", tracking_uri=server)
    assert sorted(models["id"]) == sorted([b.id, c.id])
    by_run = trial_rows("caught-up", tracking_uri=server, all_trials=True)
    assert trial_rows("caught-up", tracking_uri=server) == [row for row in by_run if row.frontier]
    check_registry_over_http(server, again)


def published() -> str:
    """A formula that is whole: what is read from a directory is checked."""
    return TinyFormula.load("published").to_json()


def check_registry_over_http(server: str, window: Window) -> None:
    assert read_text("models:/tiny-formula@champion", server) == published()
    (version,) = window.client.search_model_versions("name = 'tiny-formula'")
    assert version.run_id == window.parent.info.run_id
    names = [item.path for item in window.client.list_artifacts(window.parent.info.run_id)]
    assert sorted(names) == ["formula.json", "frontier.csv", "frontier.json"]


def test_a_job_and_its_weights_over_http(
    tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights reach the server's artifacts, and come back as a model version from which the network is built."""
    import mlflow
    from mlflow.artifacts import download_artifacts

    done = trained(capsys, *arguments(tmp_path, "--tracking", server))
    run = JobRuns(server).only()
    assert done["link"] == f"{server}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert trained(capsys, *arguments(tmp_path, "--tracking", server)) == done | {
        "trained_now": False
    }
    (version,) = JobRuns(server).client.search_model_versions(f"name = '{LABEL}'")
    assert version.run_id == run.info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    mlflow.set_tracking_uri(server)
    try:
        folder = download_artifacts(f"models:/{LABEL}@champion", dst_path=str(tmp_path / "fetched"))
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    assert load_exported(folder)[0] == load_exported(done["weights"])[0]
    assert not (tmp_path / "mlflow.db").exists()


def test_a_server_that_comes_back_gets_everything(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    search, said = Search(tmp_path, "comes-back", space="efficientnet_b0"), []
    log, down = MlflowClient.log_batch, [True]

    def flaky(self: MlflowClient, *args: Any, **options: Any) -> Any:
        if down[0]:
            raise MlflowException("gone")
        return log(self, *args, **options)

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    result = search.end(search.candidates[0])
    publisher = search.publisher(server, said)
    publisher.start(interval=0.05)
    wait_until(lambda: bool(said), 30)
    down[0] = False
    assert publisher.close(60)
    window = Window(server, "comes-back")
    assert window.points(search.candidates[0].run) == wanted_points(result.epochs)
    assert len(said) == 1
