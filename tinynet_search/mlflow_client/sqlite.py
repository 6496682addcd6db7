"""Creates MLflow's SQLite database atomically, and updates artifact locations when it is moved.

Called by ``connection.connect`` for a database URI. MLflow creates its tables in about a hundred
steps over several seconds, and cannot use a database that a killed process left incomplete: the
next process finds a table that it tries to create. So the database is created under a hidden name
and linked into place.
"""

import os
import sqlite3
import threading
import time
import uuid
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from tinynet_search.mlflow_client.experiments import artifact_folder

ARTIFACTS = "mlartifacts"
_LOCATION_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
# Age in seconds from which a hidden file is treated as left by a process that has ended.
STALE_SECONDS = 3600.0
# Alembic, with which MLflow creates the tables, has process-wide state.
_CREATE_LOCK = threading.Lock()


def create_database(database: Path) -> None:
    """Create the database unless it exists, or another process creates it at the same time.

    Raises:
        OSError: the folder cannot be written. MLflow's own exceptions are passed through.
    """
    with _CREATE_LOCK:
        if not database.exists():
            database.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(database)
            _create(database)


def _create(database: Path) -> None:
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
        _link_into_place(hidden, database)
    finally:
        hidden.unlink(missing_ok=True)


def _link_into_place(hidden: Path, database: Path) -> None:
    try:
        os.link(hidden, database)
    except FileExistsError:
        return
    except OSError:  # a mount without hard links
        if not database.exists():
            hidden.rename(database)


def _remove_leftovers(database: Path) -> None:
    """Remove the hidden files of killed processes, including SQLite's journals."""
    for old in database.parent.glob(f".{database.name}.*"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > STALE_SECONDS:
                old.unlink()


def update_artifact_locations(database: Path) -> None:
    """Point a moved database to the artifact folder next to it, in one transaction.

    Only locations ``<folder>/mlartifacts/...`` recorded for this project's experiments are
    changed. Nothing is changed if the recorded folder is still the current one (for example under
    another name), or if only the database was moved.
    """
    if not database.is_file():
        return
    # The database may be locked or read-only: then it is left as it is until the next call.
    with suppress(sqlite3.Error):
        for old in _moved_prefixes(database):
            with closing(sqlite3.connect(database, timeout=5)) as connection, connection:
                _rewrite(connection, old, _prefix(database))


def _prefix(database: Path) -> str:
    return (database.parent / ARTIFACTS).as_uri() + "/"


def _moved_prefixes(database: Path) -> list[str]:
    """Return the recorded artifact prefixes that are no longer valid."""
    with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)) as connection:
        rows = connection.execute("select name, artifact_location from experiments").fetchall()
    folders = {location: artifact_folder(name) for name, location in rows if location}
    recorded = {
        location.removesuffix(folder)
        for location, folder in folders.items()
        if location.endswith(f"/{ARTIFACTS}/{folder}")
    }
    current = database.parent / ARTIFACTS
    return sorted(
        old
        for old in recorded
        if old.startswith("file:///")
        and old != _prefix(database)
        and not _is_still_valid(old, current)
    )


def _is_still_valid(old: str, current: Path) -> bool:
    """Whether the old folder exists and is not superseded by the one next to the database."""
    folder = Path(unquote(urlsplit(old).path))
    return folder.is_dir() and (not current.is_dir() or os.path.samefile(folder, current))


def _rewrite(connection: sqlite3.Connection, old: str, new: str) -> None:
    tables = {
        name
        for (name,) in connection.execute("select name from sqlite_master where type = 'table'")
    }
    for table, column in _LOCATION_COLUMNS:
        if table in tables:
            statement = (
                f"update {table} set {column} = ? || substr({column}, ?)"
                f" where substr({column}, 1, ?) = ?"
            )
            connection.execute(statement, (new, len(old) + 1, len(old), old))
