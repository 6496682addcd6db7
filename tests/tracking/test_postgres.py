"""Tests publisher, sync and frontier on an MLflow server with a PostgreSQL database.

It also tests, at a small size, how the benchmark creates many trials.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import tracking_scale
from tests.required import require_postgres
from tests.tracking.helpers import SQLALCHEMY, MlflowSearch, expected_points, tracking_environment
from tests.tracking.servers import mlflow_server, postgres_server
from tinynet_search.tracking.queries import search_models
from tinynet_search.tracking.sync import sync_search

pytestmark = [pytest.mark.postgres, pytest.mark.filterwarnings(SQLALCHEMY)]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with tracking_environment(), postgres_server(require_postgres()) as address:
        yield address


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server"), database) as url:
        yield url


def test_search_and_its_frontier_on_postgres(server: str, database: str, tmp_path: Path) -> None:
    search = tracking_scale.searched(tmp_path, tracking_scale.NAME, 10)
    results = {candidate.run: search.end(candidate) for candidate in search.candidates}
    tracking_scale.publish(search, server)
    in_mlflow = MlflowSearch(server, tracking_scale.NAME)
    assert {run: in_mlflow.points(run) for run in in_mlflow.runs} == {
        run: expected_points(r.epochs) for run, r in results.items()
    }
    assert (in_mlflow.parent.info.status, in_mlflow.statuses()) == ("FINISHED", ["FINISHED"] * 10)
    assert sync_search(search.store, server).epochs == 0

    with tracking_scale.on_postgres(database) as execute:
        tracking_scale.multiply(execute, 60)
    assert len(MlflowSearch(server, tracking_scale.NAME).runs) == 60
    assert len(search_models(tracking_scale.NAME, tracking_uri=server).rows) == 12
    assert len(search_models(tracking_scale.NAME, tracking_uri=server, all_trials=True).rows) == 60
