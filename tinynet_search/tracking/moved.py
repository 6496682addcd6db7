"""A storage folder that was moved with its SQLite database: MLflow records artifacts by their absolute place."""

import os
import sqlite3
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
