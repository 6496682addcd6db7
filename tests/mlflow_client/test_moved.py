"""Tests that a storage folder can be moved together with its MLflow database."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from tests.tracking.helpers import (
    FORMULA_TEXT,
    MODEL,
    SQLALCHEMY,
    MlflowSearch,
    Search,
    expected_points,
    formula_text,
    tracking_environment,
)
from tinynet_search import frontier_models
from tinynet_search.mlflow_client.connection import resolve_uri
from tinynet_search.mlflow_client.registry import downloaded_file
from tinynet_search.mlflow_client.sqlite import update_artifact_locations
from tinynet_search.store.directory import SearchStore
from tinynet_search.tracking.publisher import Publisher

pytestmark = pytest.mark.filterwarnings(SQLALCHEMY)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with tracking_environment():
        yield


def locations(database: Path) -> set[str]:
    """Return every artifact location in the database, of this project's experiments."""
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "select artifact_location from experiments where name like 'tinynet-%'"
            " union select artifact_uri from runs"
            " union select artifact_location from logged_models"
            " union select source from model_versions"
            " union select storage_location from model_versions"
        )
        return {location for (location,) in rows if location}


def test_moved_storage_can_be_used(tmp_path: Path) -> None:
    old, new = tmp_path / "old, 100%", tmp_path / "else where" / "new"
    search = Search(old, "moves")
    a, b, _ = search.candidates
    first = search.end(a)
    publisher = search.publisher(resolve_uri(None, None, str(old)))
    publisher.conclude(search.rows([a]), FORMULA_TEXT, [])
    assert publisher.close(120)
    artifacts = sorted(
        path.relative_to(old) for path in (old / "mlartifacts").rglob("*") if path.is_file()
    )
    assert artifacts

    new.parent.mkdir()
    shutil.move(old, new)
    # MLflow's client caches the artifact location of a run for the lifetime of the process.
    _artifact_repos_cache.clear()
    uri = resolve_uri(None, None, str(new))
    # Reading works before anything is published at the new location.
    assert list(frontier_models("moves", storage=str(new))["id"]) == [a.id]
    with downloaded_file(f"models:/{MODEL}@champion", "formula.json", uri) as file:
        assert file.read_text() == FORMULA_TEXT
    search.store = SearchStore(str(new / "moves"))
    second = search.end(b)
    text = formula_text(7)
    publisher = Publisher(search.store, search.plan, uri, warn=pytest.fail)
    publisher.watch(search.candidates)
    publisher.conclude(search.rows([a, b]), text, [])
    assert publisher.close(120)

    assert not list(old.rglob("*")), list(old.rglob("*"))
    in_mlflow = MlflowSearch(uri, "moves")
    assert {run: in_mlflow.points(run) for run in in_mlflow.runs} == {
        r.run: expected_points(r.epochs) for r in (first, second)
    }
    assert len(frontier_models("moves", storage=str(new))) == 2
    with downloaded_file(f"models:/{MODEL}@champion", "formula.json", uri) as file:
        assert file.read_text() == text
    with downloaded_file(f"models:/{MODEL}/1", "formula.json", uri) as file:
        assert file.read_text() == FORMULA_TEXT
    inside = (new / "mlartifacts").as_uri()
    assert all(location.startswith(inside) for location in locations(new / "mlflow.db"))
    assert {
        path.relative_to(new) for path in (new / "mlartifacts").rglob("*") if path.is_file()
    } > set(artifacts)

    check_unchanged_locations(new, tmp_path)


def check_unchanged_locations(storage: Path, tmp_path: Path) -> None:
    """Check the cases in which locations are kept.

    These are another name of the same folder, a database that was moved without its artifacts,
    and locations that are not local.
    """
    before = locations(storage / "mlflow.db")
    alias = tmp_path / "alias"
    alias.symlink_to(storage)
    update_artifact_locations(alias / "mlflow.db")
    assert locations(storage / "mlflow.db") == before

    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(storage / "mlflow.db", copy)
    update_artifact_locations(copy / "mlflow.db")
    assert locations(copy / "mlflow.db") == before

    with closing(sqlite3.connect(copy / "mlflow.db")) as connection, connection:
        connection.execute(
            "update experiments set artifact_location = 's3://bucket/mlartifacts/' || name"
            " where name like 'tinynet-%'"
        )
    remote = locations(copy / "mlflow.db")
    (copy / "mlartifacts").mkdir()
    update_artifact_locations(copy / "mlflow.db")
    assert locations(copy / "mlflow.db") == remote
    (copy / "mlflow.db").write_bytes(b"not a database")
    update_artifact_locations(copy / "mlflow.db")
    update_artifact_locations(tmp_path / "nowhere" / "mlflow.db")
    assert not (tmp_path / "nowhere").exists()
