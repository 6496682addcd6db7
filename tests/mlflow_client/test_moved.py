"""A storage folder moved with the database beside it: everything goes on in the new place."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from tests.tracking.helpers import FORMULA_TEXT, SQLALCHEMY, Search, Window, calm, wanted_points
from tinynet_search import frontier_models
from tinynet_search.mlflow_client.connection import resolve_uri
from tinynet_search.mlflow_client.registry import fetched
from tinynet_search.mlflow_client.sqlite import follow
from tinynet_search.store.directory import SearchStore
from tinynet_search.tracking.publisher import Publisher

pytestmark = pytest.mark.filterwarnings(SQLALCHEMY)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with calm():
        yield


def places(database: Path) -> set[str]:
    """Every place that the database names, of experiments that are ours."""
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute(
            "select artifact_location from experiments where name like 'tinynet-%' union select artifact_uri from runs"
            " union select artifact_location from logged_models union select source from model_versions"
            " union select storage_location from model_versions"
        )
        return {place for (place,) in found if place}


def test_a_moved_storage_goes_on(tmp_path: Path) -> None:
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
    # MLflow's client keeps where a run's artifacts were for as long as its process lives.
    _artifact_repos_cache.clear()
    uri = resolve_uri(None, None, str(new))
    # A reader comes first, and finds the files too.
    assert list(frontier_models("moves", storage=str(new))["id"]) == [a.id]
    with fetched("models:/tiny-formula@champion", "formula.json", uri) as file:
        assert file.read_text() == FORMULA_TEXT
    search.store = SearchStore(str(new / "moves"))
    second = search.end(b)
    text = json.dumps({"schema": 1, "usable": True, "points": [3]})
    publisher = Publisher(search.store, search.plan, uri, warn=pytest.fail)
    publisher.watch(search.candidates)
    publisher.conclude(search.rows([a, b]), text, [])
    assert publisher.close(120)

    assert not list(old.rglob("*")), list(old.rglob("*"))
    window = Window(uri, "moves")
    assert {run: window.points(run) for run in window.runs} == {
        r.run: wanted_points(r.epochs) for r in (first, second)
    }
    assert len(frontier_models("moves", storage=str(new))) == 2
    with fetched("models:/tiny-formula@champion", "formula.json", uri) as file:
        assert file.read_text() == text
    with fetched("models:/tiny-formula/1", "formula.json", uri) as file:
        assert file.read_text() == FORMULA_TEXT
    inside = (new / "mlartifacts").as_uri()
    assert all(place.startswith(inside) for place in places(new / "mlflow.db"))
    assert {
        path.relative_to(new) for path in (new / "mlartifacts").rglob("*") if path.is_file()
    } > set(artifacts)

    check_what_stays(new, tmp_path)


def check_what_stays(storage: Path, tmp_path: Path) -> None:
    """Another name of the same folder, a database without its artifacts, and places that are not ours."""
    before = places(storage / "mlflow.db")
    alias = tmp_path / "alias"
    alias.symlink_to(storage)
    follow(alias / "mlflow.db")
    assert places(storage / "mlflow.db") == before

    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(storage / "mlflow.db", alone)
    follow(alone / "mlflow.db")
    assert places(alone / "mlflow.db") == before

    with closing(sqlite3.connect(alone / "mlflow.db")) as connection, connection:
        connection.execute(
            "update experiments set artifact_location = 's3://bucket/mlartifacts/' || name where name like 'tinynet-%'"
        )
    theirs = places(alone / "mlflow.db")
    (alone / "mlartifacts").mkdir()
    follow(alone / "mlflow.db")
    assert places(alone / "mlflow.db") == theirs
    (alone / "mlflow.db").write_bytes(b"no database")
    follow(alone / "mlflow.db")
    follow(tmp_path / "nowhere" / "mlflow.db")
    assert not (tmp_path / "nowhere").exists()
