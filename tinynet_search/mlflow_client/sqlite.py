"""A new SQLite database of MLflow, which is there whole or not at all.

MLflow makes its tables in some hundred steps over several seconds, and cannot use a database in which a killed process
left off: the next one finds a table that it wants to make. So they are made under a hidden name, and linked into place.
"""

import os
import sqlite3
import threading
import time
import uuid
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

ARTIFACTS = "mlartifacts"
_RECORDS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


# Seconds after which a hidden file was left by a process that is gone.
LEFT = 3600.0
# The tool that makes the tables is one for a whole process.
_ONE = threading.Lock()


def make(database: Path) -> None:
    """Have the database there; one that exists, or that another process makes in the same moment, is left alone.

    Raises:
        OSError: its folder cannot be written; and whatever MLflow raises.
    """
    with _ONE:
        if not database.exists():
            database.parent.mkdir(parents=True, exist_ok=True)
            _sweep(database)
            _make(database)


def _make(database: Path) -> None:
    from mlflow.store.db import utils

    hidden = database.with_name(f".{database.name}.{uuid.uuid4().hex[:12]}")
    try:
        engine = utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{hidden}")
        try:
            utils._initialize_tables(engine)
        finally:
            engine.dispose()
        with hidden.open("rb") as file:
            os.fsync(file.fileno())
        _place(hidden, database)
    finally:
        hidden.unlink(missing_ok=True)


def _place(hidden: Path, database: Path) -> None:
    try:
        os.link(hidden, database)
    except FileExistsError:
        return
    except OSError:  # a mount without hard links
        if not database.exists():
            hidden.rename(database)


def _sweep(database: Path) -> None:
    """Remove what killed makers left, with SQLite's journals of it."""
    for old in database.parent.glob(f".{database.name}.*"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > LEFT:
                old.unlink()


def follow(database: Path) -> None:
    """Let a database that lies elsewhere than when it was made name the artifacts beside it, in one transaction.

    Only what was recorded as ``<folder>/mlartifacts/...`` of our own experiments' folders is changed, and nothing where
    the old folder still is the place, as under another name of the same folder, or where only the database was moved.
    """
    if not database.is_file():
        return
    # Someone else may hold it, or it may be read-only: then what it names stays as it is, until the next time.
    with suppress(sqlite3.Error):
        for old in _left(database):
            with closing(sqlite3.connect(database, timeout=5)) as connection, connection:
                _rewrite(connection, old, _prefix(database))


def _prefix(database: Path) -> str:
    return (database.parent / ARTIFACTS).as_uri() + "/"


def _left(database: Path) -> list[str]:
    """Prefixes of places that experiments name and that were left."""
    with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)) as connection:
        rows = connection.execute(
            "select name, artifact_location from experiments where name like 'tinynet-%'"
        ).fetchall()
    recorded = {
        place.removesuffix(name)
        for name, place in rows
        if place and place.endswith(f"/{ARTIFACTS}/{name}")
    }
    here = database.parent / ARTIFACTS
    return sorted(
        old
        for old in recorded
        if old.startswith("file:///") and old != _prefix(database) and not _is_still(old, here)
    )


def _is_still(old: str, here: Path) -> bool:
    there = Path(unquote(urlsplit(old).path))
    return there.is_dir() and (not here.is_dir() or os.path.samefile(there, here))


def _rewrite(connection: sqlite3.Connection, old: str, new: str) -> None:
    there = {
        name
        for (name,) in connection.execute("select name from sqlite_master where type = 'table'")
    }
    for table, column in _RECORDS:
        if table in there:
            change = f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?"
            connection.execute(change, (new, len(old) + 1, len(old), old))
