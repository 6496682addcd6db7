"""A new SQLite database of MLflow, which is there whole or not at all.

MLflow makes its tables in some hundred steps over several seconds, and cannot use a database in which a killed process
left off: the next one finds a table that it wants to make. So they are made under a hidden name, and linked into place.
"""

import os
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

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
