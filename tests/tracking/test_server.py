"""Tests publishing over HTTP, to a real server and to servers that are unreachable or hang."""

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
    MlflowSearch,
    Search,
    expected_points,
    free_port,
    tracking_environment,
    wait_until,
)
from tests.tracking.servers import mlflow_server
from tests.train.helpers import LABEL, JobRuns, arguments, train_json
from tinynet_search import TrackingError, frontier_models
from tinynet_search.export import load_exported
from tinynet_search.formula.files import read_text
from tinynet_search.formula.tiny_formula import TinyFormula
from tinynet_search.plan.candidates import candidate_of
from tinynet_search.store.directory import FINALS, FORMULA, FRONTIER
from tinynet_search.store.schema import FinalRow
from tinynet_search.tracking.queries import search_models
from tinynet_search.tracking.sync import sync_search

pytestmark = pytest.mark.filterwarnings(SQLALCHEMY)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with tracking_environment():
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server with a separate database and separate artifacts."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as url:
        yield url


def test_unreachable_server_is_reported_once_and_does_not_block(tmp_path: Path) -> None:
    host = f"127.0.0.1:{free_port()}"
    search, warnings = Search(tmp_path, "unreachable"), []
    publisher = search.publisher(f"http://ann:secret@{host}", warnings)
    publisher.start(interval=0.05)
    search.end(search.candidates[0])
    wait_until(lambda: bool(warnings), 30)
    time.sleep(1.5)
    started = time.monotonic()
    assert publisher.close(20) is False
    assert time.monotonic() - started < 20
    (line,) = warnings
    assert f"MLflow at http://{host} does not respond (Connection refused)" in line
    assert "tinynet sync" in line
    assert "secret" not in line and "\n" not in line
    with pytest.raises(
        TrackingError,
        match=rf"^MLflow at http://{re.escape(host)} does not respond \(Connection refused\)$",
    ):
        frontier_models(tracking_uri=f"http://ann:secret@{host}")
    with pytest.raises(TrackingError, match=host):
        sync_search(search.store, f"http://{host}")


def test_hanging_server_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        warnings: list[str] = []
        publisher = Search(tmp_path, "hangs").publisher(
            f"http://127.0.0.1:{silent.getsockname()[1]}", warnings
        )
        publisher.start(interval=0.05)
        started = time.monotonic()
        assert publisher.close(0.5) is False
        assert time.monotonic() - started < 2
        wait_until(lambda: bool(warnings), 20)
        assert "does not respond (timed out)" in warnings[0]
        assert publisher.close(20) is False


def test_sync_sends_the_rest_to_a_real_server(tmp_path: Path, server: str) -> None:
    search = Search(tmp_path, "caught-up", space="efficientnet_b0", trials=4)
    a, b, c, _ = search.candidates
    results = {candidate.run: search.end(candidate) for candidate in (a, b)}
    search.commit(c, 2)
    # The driver could not send these results.
    down = search.publisher(f"http://127.0.0.1:{free_port()}")
    assert down.close(20) is False

    first = sync_search(search.store, server)
    assert (first.search, first.runs, first.epochs) == ("caught-up", 3, 10)
    assert first.link is not None and first.link.startswith(f"{server}/#/experiments/")
    stopped = MlflowSearch(server, "caught-up")
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
    search.store.folder.write(FORMULA, published_formula().encode())
    # The unfinished trial is sent from its start, since a new publisher has no state.
    assert sync_search(search.store, server).epochs == 4 + 4 + 5
    complete = MlflowSearch(server, "caught-up")
    assert sync_search(search.store, server).epochs == 0
    again = MlflowSearch(server, "caught-up")
    for in_mlflow in (complete, again):
        assert (in_mlflow.parent.info.status, in_mlflow.statuses()) == (
            "FINISHED",
            ["FINISHED"] * 5,
        )
        assert {run: in_mlflow.points(run) for run in in_mlflow.runs} == {
            run: expected_points(r.epochs) for run, r in results.items()
        }
    assert again.parent.to_dictionary() == complete.parent.to_dictionary()
    assert again.runs[final.run].data.tags["label"] == "inverse giant"
    models = frontier_models("caught-up", tracking_uri=server)
    assert sorted(models["id"]) == sorted([b.id, c.id])
    by_run = search_models("caught-up", tracking_uri=server, all_trials=True).rows
    assert search_models("caught-up", tracking_uri=server).rows == [
        row for row in by_run if row.frontier
    ]
    check_registry_over_http(server, again)


def published_formula() -> str:
    """Return a valid formula, since a formula is validated when it is read from a directory."""
    return TinyFormula.load("published").to_json()


def check_registry_over_http(server: str, in_mlflow: MlflowSearch) -> None:
    assert read_text("models:/tiny-formula@champion", server).text == published_formula()
    (version,) = in_mlflow.client.search_model_versions("name = 'tiny-formula-efficientnet_b0'")
    assert version.run_id == in_mlflow.parent.info.run_id
    names = [item.path for item in in_mlflow.client.list_artifacts(in_mlflow.parent.info.run_id)]
    assert sorted(names) == ["class_names.json", "formula.json", "frontier.csv", "frontier.json"]


def test_job_and_its_weights_over_http(
    tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are uploaded to the server, and the network is built from the downloaded version."""
    import mlflow
    from mlflow.artifacts import download_artifacts

    summary = train_json(capsys, *arguments(tmp_path, "--tracking", server))
    run = JobRuns(server).only()
    assert (
        summary["link"] == f"{server}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    )
    assert train_json(capsys, *arguments(tmp_path, "--tracking", server)) == summary | {
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
    assert load_exported(folder)[0] == load_exported(summary["weights"])[0]
    assert not (tmp_path / "mlflow.db").exists()


def test_server_that_recovers_gets_everything(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    search, warnings = Search(tmp_path, "recovers", space="efficientnet_b0"), []
    log_batch, down = MlflowClient.log_batch, [True]

    def flaky(self: MlflowClient, *args: Any, **options: Any) -> Any:
        if down[0]:
            raise MlflowException("not available")
        return log_batch(self, *args, **options)

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    result = search.end(search.candidates[0])
    publisher = search.publisher(server, warnings)
    publisher.start(interval=0.05)
    wait_until(lambda: bool(warnings), 30)
    down[0] = False
    assert publisher.close(60)
    in_mlflow = MlflowSearch(server, "recovers")
    assert in_mlflow.points(search.candidates[0].run) == expected_points(result.epochs)
    assert len(warnings) == 1
