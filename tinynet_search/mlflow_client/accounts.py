"""Explains why MLflow rejects an account, and what gives it access.

Used by ``connection``, which unifies MLflow's errors.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from tinynet_search.errors import one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

USERNAME, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
TOKEN, CREDENTIALS = "MLFLOW_TRACKING_TOKEN", "~/.mlflow/credentials"
_CODES = {"UNAUTHENTICATED": 401, "CUSTOMER_UNAUTHORIZED": 401, "PERMISSION_DENIED": 403}


def address(uri: str) -> str:
    """Return a tracking URI that is safe to print: without user, password and options."""
    parts = urlsplit(uri)
    if parts.scheme.startswith("sqlite") or not parts.netloc:
        return uri
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def account_error(error: BaseException, uri: str) -> str | None:
    """Return one line if MLflow rejects the account or the host name, None for another error."""
    status = _status(error)
    if status == 401:
        return f"MLflow at {address(uri)} {_unknown_account(uri)}"
    if status != 403:
        return None
    if "Invalid Host header" in str(error):
        host = urlsplit(uri).netloc.rpartition("@")[2]
        return (
            f"MLflow at {address(uri)} rejects the host name {host}: "
            "add it to --allowed-hosts (MLFLOW_SERVER_ALLOWED_HOSTS) of the server"
        )
    account = _account(uri)
    name = account.name if account else "a client without an account"
    denial = ", ".join(getattr(error, "__notes__", [])) or "has no permission"
    return f"MLflow at {address(uri)}: {name} {denial}"


def is_denied(error: BaseException) -> bool:
    """Whether the account has no permission."""
    return _status(error) == 403


def denial(client: "MlflowClient", method: str, arguments: Sequence[Any]) -> str:
    """Return which permission a rejected request needs, and who can give it.

    Args:
        client: MLflow's client.
        method: the method of the client that was called.
        arguments: its positional arguments.
    """
    subject = _subject(client, method, arguments)
    if method.startswith(("get_", "search_", "list_")):
        # MLflow's basic-auth responds in the same way if it does not exist.
        return (
            f"has no permission to read {subject}, or it does not exist: "
            "correct the name, or ask its owner or an administrator for READ"
        )
    action, permission = "change", "EDIT"
    if "delete" in method and method != "delete_tag":
        # EDIT does not include the deletion of runs, even of one's own.
        action, permission = "delete from", "MANAGE"
    other = ""
    if subject.startswith("experiment"):
        other = ", or set tracking.experiment or MLFLOW_EXPERIMENT_NAME to another experiment"
    return (
        f"has no permission to {action} {subject}: ask its owner or an administrator "
        f"for {permission}{other}"
    )


def _subject(client: "MlflowClient", method: str, arguments: Sequence[Any]) -> str:
    """Return what a request changes: a registered model or an experiment."""
    first = str(arguments[0]) if arguments else ""
    if "registered_model" in method or "model_version" in method:
        return f"registered model {one_line(first, 100)}"
    if method == "create_experiment":
        return f"experiment {one_line(first, 100)}"
    try:
        if method not in _BY_EXPERIMENT:
            if "logged_model" in method or method == "log_model_artifacts":
                first = client.get_logged_model(first).experiment_id
            else:
                first = client.get_run(first).info.experiment_id
        return f"experiment {one_line(client.get_experiment(first).name, 100)}"
    except Exception:  # the account may not even read it
        return f"what {method} changes"


_BY_EXPERIMENT = ("create_run", "set_experiment_tag", "create_logged_model", "get_experiment")


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of a rejected account: 401 or 403."""
    code = _CODES.get(str(getattr(error, "error_code", None)))
    if code is None:  # uploads and downloads raise the errors of requests
        code = getattr(getattr(error, "response", None), "status_code", None)
    return code if code in (401, 403) else None


def _unknown_account(uri: str) -> str:
    """Return why the server does not know the account, and what to set."""
    account = _account(uri)
    if account is None:
        user, password = _credentials()
        missing = f"{USERNAME} and {PASSWORD}"
        if user or password:
            missing = PASSWORD if user else USERNAME
        return f"requires an account: set {missing}"
    password = "" if account.source == TOKEN else " or its password"
    return f"rejects {account.name}{password}: correct {account.source}"


class _Account(NamedTuple):
    """An account as messages name it, and where it is set."""

    name: str
    source: str

    @classmethod
    def of_user(cls, user: str, source: str) -> "_Account":
        return cls(f"account {one_line(user, 80)!r}", source)


def _account(uri: str) -> _Account | None:
    """Return the account that MLflow's client sends, None if it sends none."""
    user, password = _credentials()
    in_uri = urlsplit(uri).netloc.rpartition("@")[0]
    if user and password:
        from_environment = os.environ.get(USERNAME) and os.environ.get(PASSWORD)
        source = f"{USERNAME} and {PASSWORD}" if from_environment else CREDENTIALS
        return _Account.of_user(user, source)
    if in_uri:
        return _Account.of_user(in_uri.partition(":")[0], "the tracking URI")
    if os.environ.get(TOKEN):
        return _Account("the token", TOKEN)
    return None


def _credentials() -> tuple[str | None, str | None]:
    """Return user and password from the environment or the file of MLflow's client."""
    from mlflow.utils.credentials import read_mlflow_creds

    credentials = read_mlflow_creds()
    return credentials.username, credentials.password
