"""A new SQLite database is there whole or not at all, whoever dies while it is made."""

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tracking.helpers import SQLALCHEMY, Search, Window, calm
from tinynet_search.mlflow_client import sqlite as module
from tinynet_search.mlflow_client.connection import connect, reaching

pytestmark = pytest.mark.filterwarnings(SQLALCHEMY)
MAKER = "import sys; from pathlib import Path; from tinynet_search.mlflow_client.sqlite import make; make(Path(sys.argv[1]))"


def test_whoever_dies_while_it_is_made_leaves_none(tmp_path: Path) -> None:
    """A process killed in the middle of the tables; whoever comes next has a whole database, with what it publishes."""
    database = tmp_path / "mlflow.db"
    with subprocess.Popen(
        [sys.executable, "-c", MAKER, str(database)], stderr=subprocess.DEVNULL
    ) as maker:
        end = time.monotonic() + 60
        while not _tables(tmp_path):
            assert time.monotonic() < end
            assert maker.poll() is None
            time.sleep(0.01)
        maker.kill()
    assert not database.exists()
    left = list(tmp_path.glob(".mlflow.db.*"))
    assert left
    for file in left:
        os.utime(file, (0, 0))
    search = Search(tmp_path, "after", twists=1)
    search.end(search.candidates[0])
    with calm():
        publisher = search.publisher(f"sqlite:///{database}")
        publisher.sync_once()
        assert set(Window(f"sqlite:///{database}", "after").runs) == {search.candidates[0].run}
    assert not list(tmp_path.glob(".mlflow.db.*"))


def _tables(folder: Path) -> int:
    """Tables of a database in the making: enough of them that the migrations have begun, and some are left to do."""
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


def test_two_makers_at_once_make_one(tmp_path: Path) -> None:
    database = tmp_path / "deep" / "mlflow.db"
    makers = [
        subprocess.Popen([sys.executable, "-c", MAKER, str(database)], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [maker.communicate(timeout=120)[1] for maker in makers]
    assert [maker.returncode for maker in makers] == [0, 0], said
    assert [file.name for file in database.parent.iterdir()] == ["mlflow.db"]
    with calm(), reaching("sqlite:///x"):
        assert connect(f"sqlite:///{database}").search_experiments()


@pytest.mark.parametrize("other", [False, True])
def test_a_mount_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: bool
) -> None:
    database, hidden = tmp_path / "mlflow.db", tmp_path / "hidden"
    hidden.write_bytes(b"ours")
    if other:
        database.write_bytes(b"theirs")

    def refused(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(module.os, "link", refused)
    module._place(hidden, database)
    assert database.read_bytes() == (b"theirs" if other else b"ours")
