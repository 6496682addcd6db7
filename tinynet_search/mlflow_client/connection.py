"""Where MLflow is, and how it is spoken to: with seconds of patience, in silence, its many errors as one."""

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from search_spaces.errors import RequestError
from tinynet_search.errors import TrackingError, one_line
from tinynet_search.mlflow_client.sqlite import follow, make

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# MLflow's own patience with a dead server is minutes; it also prints links and progress bars. What the user has set stays.
MANNERS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# Runs that are asked for at once: a busy server needs seconds for a thousand, and the patience of a call is ten.
PAGE = 250
# Runs that one question may find: ten times the largest search.
MOST_RUNS = 100_000
# What MLflow opens, a database with its driver behind a plus; file: it knows and refuses in its own words.
SCHEMES = (
    "http",
    "https",
    "sqlite",
    "mysql",
    "postgresql",
    "mssql",
    "databricks",
    "databricks-uc",
    "file",
)
# What MLflow calls a fault of its own, and its client whatever became of a request on its way.
_FAULTS = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
# When MLflow last answered a thread, by the monotonic clock.
_HEARD: dict[int, float] = {}
_FOREIGN = {"mlflow", "requests", "urllib3", "sqlalchemy", "sqlite3", "alembic"}


class RefusedError(TrackingError):
    """MLflow answered, and would not: what was asked for does not fit what it holds."""


def resolve_uri(explicit: str | None, config: str | None, storage: str) -> str:
    """The tracking URI: the flag, else MLFLOW_TRACKING_URI, else the config's, else SQLite in a local storage folder.

    Raises:
        RequestError: it is no address, or the storage is remote and nobody named a server.
    """
    uri = explicit or os.environ.get("MLFLOW_TRACKING_URI") or config
    if uri:
        if "://" not in uri and not uri.startswith("databricks"):
            raise RequestError(
                f"tracking {one_line(uri)!r} is no address: give http://host:port or sqlite:////path/to/mlflow.db"
            )
        try:
            scheme = urlsplit(uri).scheme
        except ValueError as error:
            raise RequestError(f"tracking {one_line(uri)!r} is no address ({error})") from error
        if scheme.partition("+")[0] not in SCHEMES and not uri.startswith("databricks"):
            known = "give http://host:port, sqlite:////path/to/mlflow.db or another database's"
            raise RequestError(
                f"tracking {one_line(address(uri))!r} is no address that MLflow knows: {known}"
            )
        return uri
    if "://" in storage:
        shown = one_line(address(storage))
        raise RequestError(
            f"storage {shown!r} is remote: name an MLflow server by --tracking, MLFLOW_TRACKING_URI or [tracking] uri"
        )
    return f"sqlite:///{Path(storage).expanduser().absolute() / 'mlflow.db'}"


def address(uri: str) -> str:
    """A tracking URI as it may be printed: without user, password and options."""
    parts = urlsplit(uri)
    if parts.scheme.startswith("sqlite") or not parts.netloc:
        return uri
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def database_file(uri: str) -> Path | None:
    """The file of an SQLite URI; None for every other."""
    return (
        Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute()
        if uri.startswith("sqlite:///")
        else None
    )


def is_served(uri: str) -> bool:
    """Whether a server stands between us and the database."""
    return uri.startswith(("http:", "https:", "databricks"))


def preload(uri: str) -> None:
    """Import what a connection needs. In the caller's thread: imports in two threads at once can deadlock."""
    import mlflow.tracking

    if database_file(uri):
        import mlflow.store.model_registry.sqlalchemy_store
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def connect(uri: str) -> "MlflowClient":
    """A client of its own: MLflow's global settings stay as they are. To be used within ``reaching``."""
    from mlflow import MlflowClient

    if not is_served(uri) and find_spec("sqlalchemy") is None:
        raise TrackingError(
            f"MLflow at {address(uri)} is a database and needs all of MLflow: pip install 'tinynet-search[search]'"
        )
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    if database := database_file(uri):
        _require_room(database, uri)
        make(database)
        follow(database)
    return cast("MlflowClient", _Heard(MlflowClient(tracking_uri=uri, registry_uri=uri)))


def _require_room(database: Path, uri: str) -> None:
    """MLflow tries a place that it cannot write for minutes."""
    place = database.parent
    while not place.exists():
        place = place.parent
    if not database.exists() and not os.access(place, os.W_OK):
        raise TrackingError(
            f"MLflow at {address(uri)} cannot be used: {place} cannot be written; name another place by --tracking"
        )


class _Heard:
    """MLflow's client, and when it was last answered."""

    def __init__(self, client: "MlflowClient") -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            answer = method(*arguments, **options)
            _HEARD[threading.get_ident()] = time.monotonic()
            return answer

        return call


def last_answer(thread: int | None) -> float:
    """When MLflow last answered a thread, by the monotonic clock; 0 where it never has."""
    return _HEARD.get(thread or 0, 0.0)


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Speak with MLflow: seconds of patience, nothing printed, and its many errors as one.

    Raises:
        TrackingError: MLflow did not answer.
        RefusedError: it would not.
    """
    with _patience(), _silence():
        try:
            yield
        except (RequestError, TrackingError):
            raise
        except Exception as error:
            homes = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
            if not isinstance(error, OSError) and not homes & _FOREIGN:
                raise
            kind = (
                TrackingError
                if getattr(error, "error_code", _FAULTS[0]) in _FAULTS
                else RefusedError
            )
            raise kind(f"MLflow at {address(uri)} {_reason(error, uri)}") from error


def search_runs(client: "MlflowClient", experiments: list[str], wanted: str) -> "list[Run]":
    """Every active run that a filter finds, newest first.

    Raises:
        RequestError: there are more than anybody reads.
    """
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs(
            experiments,
            wanted,
            max_results=PAGE,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        found += page
        token = page.token
        if not token or not page:
            return found
        refuse_endless(len(found))


def refuse_endless(found: int) -> None:
    """Raises RequestError where answers go on and on."""
    if found > MOST_RUNS:
        raise RequestError(
            f"MLflow tells of more than {MOST_RUNS:,} runs: name one search, or begin another experiment"
        )


@contextmanager
def _patience() -> Iterator[None]:
    added = {key: value for key, value in MANNERS.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep urllib3 from announcing each retry on stderr; its other users, in other threads, still may."""
    ours = threading.get_ident()
    logger = logging.getLogger("urllib3.connectionpool")

    def quiet(record: logging.LogRecord) -> bool:
        return record.thread != ours or record.levelno >= logging.ERROR

    logger.addFilter(quiet)
    try:
        yield
    finally:
        logger.removeFilter(quiet)


def _reason(error: BaseException, uri: str) -> str:
    """What went wrong in few words: MLflow wraps and quotes the whole history, credentials included."""
    text = one_line(error, 2000).replace(uri, address(uri))
    secret = urlsplit(uri).netloc.rpartition("@")[0]
    text = text.replace(f"{secret}@", "") if secret else text
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(
        kind.__name__ in ("ConnectionError", "Timeout")
        for cause in causes
        for kind in type(cause).__mro__
    ):
        found = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text) or re.search(r"timed out", text)
        return f"does not answer ({found[found.lastindex or 0].strip() if found else type(causes[-1]).__name__})"
    return f"cannot be used: {text[:300]}"
