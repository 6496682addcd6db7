"""Tests that a new SQLite database is created atomically, even if the process is killed."""

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tracking.helpers import SQLALCHEMY, MlflowSearch, Search, tracking_environment
from tinynet_search.mlflow_client import sqlite as module
from tinynet_search.mlflow_client.connection import connect, mlflow_access

pytestmark = pytest.mark.filterwarnings(SQLALCHEMY)
CREATE = (
    "import sys; from pathlib import Path; "
    "from tinynet_search.mlflow_client.sqlite import create_database; "
    "create_database(Path(sys.argv[1]))"
)


def test_killed_process_leaves_no_database(tmp_path: Path) -> None:
    """A process is killed while it creates the tables; the next one creates the database."""
    database = tmp_path / "mlflow.db"
    with subprocess.Popen(
        [sys.executable, "-c", CREATE, str(database)], stderr=subprocess.DEVNULL
    ) as process:
        end = time.monotonic() + 60
        while not _has_tables(tmp_path):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert not database.exists()
    leftovers = list(tmp_path.glob(".mlflow.db.*"))
    assert leftovers
    for file in leftovers:
        os.utime(file, (0, 0))
    search = Search(tmp_path, "after", trials=1)
    search.end(search.candidates[0])
    with tracking_environment():
        publisher = search.publisher(f"sqlite:///{database}")
        publisher.sync_once()
        assert set(MlflowSearch(f"sqlite:///{database}", "after").runs) == {
            search.candidates[0].run
        }
    assert not list(tmp_path.glob(".mlflow.db.*"))


def _has_tables(folder: Path) -> bool:
    """Whether the hidden database has more than five tables: the migrations have started."""
    for file in folder.glob(".mlflow.db.*[0-9a-f]"):
        try:
            with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
                (count,) = connection.execute(
                    "select count(*) from sqlite_master where type = 'table'"
                ).fetchone()
                return count > 5
        except sqlite3.Error:
            return False
    return False


def test_two_concurrent_processes_create_one_database(tmp_path: Path) -> None:
    database = tmp_path / "deep" / "mlflow.db"
    processes = [
        subprocess.Popen([sys.executable, "-c", CREATE, str(database)], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert [file.name for file in database.parent.iterdir()] == ["mlflow.db"]
    with tracking_environment(), mlflow_access("sqlite:///x"):
        assert connect(f"sqlite:///{database}").search_experiments()


@pytest.mark.parametrize("exists", [False, True])
def test_mount_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    database, hidden = tmp_path / "mlflow.db", tmp_path / "hidden"
    hidden.write_bytes(b"new")
    if exists:
        database.write_bytes(b"existing")

    def fail(*_: object) -> None:
        raise PermissionError("hard links are not supported")

    monkeypatch.setattr(module.os, "link", fail)
    module._link_into_place(hidden, database)
    assert database.read_bytes() == (b"existing" if exists else b"new")
