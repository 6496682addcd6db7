"""Resolves MLflow tracking URIs, opens clients with short timeouts, and unifies MLflow's errors.

Used by ``tinynet_search.tracking``, the preflight check and the model registry.
"""

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
from tinynet_search.mlflow_client.accounts import account_error, address, denial, is_denied
from tinynet_search.mlflow_client.sqlite import create_database, update_artifact_locations

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# By default MLflow retries a dead server for minutes, and prints links and progress bars.
# Variables that the user has set are kept.
MLFLOW_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# Runs per page: a busy server needs seconds for a thousand, and a request times out after ten.
PAGE_SIZE = 250
# Maximum number of runs that one query may return: ten times the largest search.
MAX_RUNS = 100_000
# URI schemes that MLflow accepts; a database driver may follow after a plus sign. MLflow
# recognizes "file" and rejects it with its own error message.
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
# Error codes of failures in the MLflow server; its client also uses them for failed requests.
_SERVER_ERRORS = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
# Time of MLflow's last response by thread id, on the monotonic clock.
_LAST_RESPONSE: dict[int, float] = {}
# Packages whose exceptions are reported as TrackingError.
_CLIENT_LIBRARIES = {"mlflow", "requests", "urllib3", "sqlalchemy", "sqlite3", "alembic"}


class RejectedRequestError(TrackingError):
    """MLflow responded and rejected the request: it conflicts with what MLflow has stored."""


def resolve_uri(explicit: str | None, config: str | None, storage: str) -> str:
    """Return the tracking URI.

    The order of precedence is the flag, MLFLOW_TRACKING_URI, the configuration, and an SQLite
    database in a local storage folder.

    Args:
        explicit: the value of ``--tracking``.
        config: ``[tracking] uri`` of the configuration.
        storage: the storage folder or URL.

    Raises:
        RequestError: the URI is not valid, or the storage is remote and no server is given.
    """
    uri = explicit or os.environ.get("MLFLOW_TRACKING_URI") or config
    if uri:
        if "://" not in uri and not uri.startswith("databricks"):
            raise RequestError(
                f"tracking {one_line(uri)!r} is not a valid URI: "
                "pass http://host:port or sqlite:////path/to/mlflow.db"
            )
        try:
            scheme = urlsplit(uri).scheme
        except ValueError as error:
            raise RequestError(
                f"tracking {one_line(uri)!r} is not a valid URI ({error}): "
                "pass http://host:port or sqlite:////path/to/mlflow.db"
            ) from error
        if scheme.partition("+")[0] not in SCHEMES and not uri.startswith("databricks"):
            raise RequestError(
                f"tracking {one_line(address(uri))!r} is not a URI that MLflow supports: "
                "pass http://host:port, sqlite:////path/to/mlflow.db or the URI of another database"
            )
        return uri
    if "://" in storage:
        shown = one_line(address(storage))
        raise RequestError(
            f"storage {shown!r} is remote: set an MLflow server with "
            "--tracking, MLFLOW_TRACKING_URI or [tracking] uri"
        )
    return f"sqlite:///{Path(storage).expanduser().absolute() / 'mlflow.db'}"


def database_file(uri: str) -> Path | None:
    """Return the file of an SQLite URI, None for any other URI."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute()


def is_served(uri: str) -> bool:
    """Whether the URI is that of a server, not of a database."""
    return uri.startswith(("http:", "https:", "databricks"))


def preload(uri: str) -> None:
    """Import what a connection needs, in the caller's thread.

    Concurrent imports in two threads can deadlock.
    """
    import mlflow.tracking

    if database_file(uri):
        import mlflow.store.model_registry.sqlalchemy_store
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def connect(uri: str) -> "MlflowClient":
    """Create a client without changing MLflow's global settings.

    Must be used within ``mlflow_access``.

    Raises:
        TrackingError: the URI is a database and MLflow is not fully installed, or the database
            cannot be written.
    """
    from mlflow import MlflowClient

    if not is_served(uri) and find_spec("sqlalchemy") is None:
        raise TrackingError(
            f"MLflow at {address(uri)} is a database, which needs the full MLflow package: "
            "install the extra 'search' (in a checkout: pip install '.[search]')"
        )
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    if database := database_file(uri):
        _require_writable(database, uri)
        create_database(database)
        update_artifact_locations(database)
    return cast("MlflowClient", _TimedClient(MlflowClient(tracking_uri=uri, registry_uri=uri)))


def _require_writable(database: Path, uri: str) -> None:
    """Raise early where the folder is not writable: MLflow would retry for minutes."""
    folder = database.parent
    while not folder.exists():
        folder = folder.parent
    if not database.exists() and not os.access(folder, os.W_OK):
        raise TrackingError(
            f"MLflow at {address(uri)} cannot be used: {folder} is not writable; "
            "pass a different location with --tracking"
        )


class _TimedClient:
    """An MLflow client that records when each thread last received a response."""

    def __init__(self, client: "MlflowClient") -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            try:
                response = method(*arguments, **options)
            except Exception as error:
                if is_denied(error):
                    error.add_note(denial(self._client, name, arguments))
                raise
            _LAST_RESPONSE[threading.get_ident()] = time.monotonic()
            return response

        return call


def last_response(thread: int | None) -> float:
    """Return the time of MLflow's last response to a thread on the monotonic clock, 0 if none."""
    return _LAST_RESPONSE.get(thread or 0, 0.0)


@contextmanager
def mlflow_access(uri: str) -> Iterator[None]:
    """Access MLflow with short timeouts and without its console output, and unify its errors.

    Raises:
        TrackingError: MLflow did not respond.
        RejectedRequestError: MLflow rejected a request, or the account.
    """
    with _default_settings(), _quiet_retries():
        try:
            yield
        except (RequestError, TrackingError):
            raise
        except Exception as error:
            packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
            if not isinstance(error, OSError) and not packages & _CLIENT_LIBRARIES:
                raise
            if message := account_error(error, uri):
                raise RejectedRequestError(message) from error
            failed = getattr(error, "error_code", _SERVER_ERRORS[0]) in _SERVER_ERRORS
            kind = TrackingError if failed else RejectedRequestError
            raise kind(f"MLflow at {address(uri)} {_reason(error, uri)}") from error


def search_runs(client: "MlflowClient", experiments: list[str], query: str) -> "list[Run]":
    """Return every active run that matches a filter, newest first.

    Raises:
        RequestError: there are more than MAX_RUNS.
    """
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs(
            experiments,
            query,
            max_results=PAGE_SIZE,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        runs += page
        token = page.token
        if not token or not page:
            return runs
        check_run_count(len(runs))


def missing_version(
    client: "MlflowClient", uri: str, shown: str, name: str, alias: str | None
) -> str:
    """Return one line about a version of a registered model that does not exist.

    Args:
        client: MLflow's client.
        uri: ``models:/name@alias`` or ``models:/name/version``.
        shown: address of the registry.
        name: name of the registered model.
        alias: alias of the version, None for a number.
    """
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        page = client.search_registered_models(max_results=20)
        names = ", ".join(one_line(each.name, 80) for each in page)
        known = f"the registered models are {names}" if names else "it has no registered models"
        return f"no formula {uri} at {shown}: {known}"
    newest = max((int(each.version) for each in model.latest_versions or ()), default=0)
    if not newest:
        return f"no formula {uri} at {shown}: the registered model {name} has no versions"
    if alias is None:
        return f"no formula {uri} at {shown}: the newest version of {name} is {newest}"
    aliases = ", ".join(one_line(each, 80) for each in sorted(model.aliases or ()))
    known = f"its aliases are {aliases}" if aliases else "it has none"
    return (
        f"no formula {uri} at {shown}: the registered model {name} has no alias {alias}, "
        f"{known}; models:/{name}/{newest} is its newest version"
    )


def check_run_count(count: int) -> None:
    """Raise RequestError if a query has returned more than MAX_RUNS runs."""
    if count > MAX_RUNS:
        raise RequestError(
            f"MLflow returned more than {MAX_RUNS:,} runs: "
            "select one search, or start another experiment"
        )


@contextmanager
def _default_settings() -> Iterator[None]:
    added = {key: value for key, value in MLFLOW_DEFAULTS.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


@contextmanager
def _quiet_retries() -> Iterator[None]:
    """Suppress urllib3's log line per retry in this thread only."""
    thread = threading.get_ident()
    logger = logging.getLogger("urllib3.connectionpool")

    def quiet(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.ERROR

    logger.addFilter(quiet)
    try:
        yield
    finally:
        logger.removeFilter(quiet)


def _reason(error: BaseException, uri: str) -> str:
    """Return a short reason: MLflow's messages quote all causes, credentials included."""
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
        match = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text) or re.search(r"timed out", text)
        cause_text = match[match.lastindex or 0].strip() if match else type(causes[-1]).__name__
        return f"does not respond ({cause_text})"
    return f"cannot be used: {text[:300]}"
