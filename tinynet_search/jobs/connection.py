"""Connects to the Ray Jobs API of a cluster, and checks the token and the version of Ray.

Called by ``submission`` and ``watching``. All errors are one line.
"""

import contextlib
import functools
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from search_spaces.errors import RequestError
from tinynet_search.cluster.ray_internals import (
    cluster_version,
    job_client,
    reports_no_dashboard,
    silence_uploads,
)
from tinynet_search.errors import JobError, one_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

# Seconds for a connection; Ray's own client has no timeout.
CONNECT_TIMEOUT = 5.0
# Seconds for a response, long enough for the upload of a working directory.
RESPONSE_TIMEOUT = 60.0
PORTS = {"http": 80, "https": 443}
HTTP = ("http://", "https://")
LOGGER = logging.getLogger("tinynet.jobs")
# The environment variables from which Ray's clients read the address of the dashboard.
ADDRESS_VARIABLE, CLUSTER_VARIABLE = "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"
TOKEN_VARIABLE, TOKEN_FILE_VARIABLE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
MAX_TOKEN_SIZE = 64 * 1024


def connect(address: str | None) -> "JobSubmissionClient":
    """A client for the Jobs API of a cluster.

    A different patch version of Ray on the cluster is logged as a warning, once per cluster: Ray's
    own client accepts every server since Ray 2.0, and the Jobs API does not change between patch
    versions.

    Args:
        address: ``http://HEAD:8265``; None uses RAY_API_SERVER_ADDRESS, or RAY_ADDRESS if it is an
            HTTP address.

    Raises:
        RequestError: no address is set, no server responds, the cluster requires a token or
            rejects it, or it runs a different minor version of Ray.
    """
    url = _address(address)
    _probe(url)
    require_client()
    import ray

    silence_uploads()
    with jobs_api_errors(url):
        try:
            with _without_address_variables():
                client = job_client(
                    url, _headers(), _certificates(), (CONNECT_TIMEOUT, RESPONSE_TIMEOUT)
                )
            version = cluster_version(client)
        except (KeyError, TypeError) as error:
            raise RequestError(
                f"expected a Ray dashboard at {url}, got a response without a Ray version"
            ) from error
    _compare_versions(url, version, ray.__version__)
    return client


@functools.cache
def _compare_versions(url: str, cluster: str, local: str) -> None:
    """Log a warning if the patch versions of Ray differ.

    Raises:
        RequestError: the major or minor versions differ.
    """
    if cluster == local:
        return
    versions = f"the cluster at {url} runs Ray {cluster}, this machine {local}"
    install = f"pip install 'ray[default]=={cluster}' here"
    if cluster.split(".")[:2] != local.split(".")[:2]:
        raise RequestError(f"{versions}: {install}, or install Ray {local} on the cluster")
    LOGGER.warning("warning: %s, which work together; for the same version, %s", versions, install)


@contextlib.contextmanager
def _without_address_variables() -> Iterator[None]:
    """Unset the address variables of the environment.

    Ray's client prefers them over its ``address`` argument, and would send the token to that
    other address.
    """
    names = (ADDRESS_VARIABLE, CLUSTER_VARIABLE)
    saved = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved)


@contextlib.contextmanager
def jobs_api_errors(url: str) -> Iterator[None]:
    """Convert all errors of the Jobs API and of its connection to errors of one line.

    Raises:
        RequestError: the cluster is not reachable, or rejects the token.
        JobError: the cluster responded with an error.
    """
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except (RequestError, JobError):
        raise
    except AuthenticationError as error:
        raise RequestError(_unauthorized(url)) from error
    except requests.exceptions.InvalidHeader as error:
        raise RequestError(
            f"the token for the cluster at {url} is not valid: "
            "expected one line of printable characters"
        ) from error
    except (requests.exceptions.RequestException, OSError) as error:
        raise RequestError(f"no Ray dashboard responds at {url} ({_cause(error)})") from error
    except (RuntimeError, ValueError) as error:
        if reports_no_dashboard(error):
            raise RequestError(f"no Ray dashboard responds at {url} (404)") from error
        raise JobError(
            f"the cluster at {url} rejected the request: {_server_message(error)}"
        ) from error


def _address(argument: str | None) -> str:
    cluster_address = os.environ.get(CLUSTER_VARIABLE, "")
    candidates = {
        "--address": argument,
        ADDRESS_VARIABLE: os.environ.get(ADDRESS_VARIABLE),
        CLUSTER_VARIABLE: cluster_address if cluster_address.startswith(HTTP) else None,
    }
    for source, url in candidates.items():
        if url:
            return _checked_address(source, url)
    raise RequestError(
        f"no cluster address: pass --address http://HEAD:8265, or set {ADDRESS_VARIABLE}"
    )


def _checked_address(source: str, url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in PORTS and parts.hostname and parts.port != 0
    except ValueError:
        parts, valid = None, False
    if parts is None or not valid:
        shown = one_line(url.rpartition("@")[2], 100)
        raise RequestError(
            f"{source} {shown!r} is not a valid address of a Ray dashboard: "
            "expected http://HEAD:8265 (not 6379, the port of Ray itself)"
        )
    if "@" in parts.netloc:
        raise RequestError(
            f"{source} contains credentials: remove them, and set a token with {TOKEN_VARIABLE} "
            f"or {TOKEN_FILE_VARIABLE}"
        )
    return url.rstrip("/")


def _probe(url: str) -> None:
    parts = urlsplit(url)
    try:
        socket.create_connection(
            (parts.hostname or "", parts.port or PORTS[parts.scheme]), timeout=CONNECT_TIMEOUT
        ).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise RequestError(
            f"no cluster responds at {url} ({reason}): "
            "set the address of the head's dashboard, http://HEAD:8265"
        ) from error


def require_client() -> None:
    """Raise RequestError if Ray's job client is not installed."""
    from importlib.util import find_spec

    if not all(find_spec(module) for module in ("ray", "requests", "aiohttp")):
        raise RequestError(
            "Ray's job client is not installed: "
            "install the extra 'submit' (in a checkout: pip install '.[submit]')"
        )


def _headers() -> dict[str, str]:
    """The token as an HTTP header, if a token is set.

    Ray's own client sends the token only if RAY_AUTH_MODE requires it.
    """
    token = find_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def find_token() -> str | None:
    """The token of this user, None without one.

    The order is Ray's: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    Raises:
        RequestError: the token is not valid, or the file RAY_AUTH_TOKEN_PATH cannot be read or is
            empty.
    """
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        return _checked_token(token, TOKEN_VARIABLE)
    configured = os.environ.get(TOKEN_FILE_VARIABLE)
    path = Path(configured).expanduser() if configured else Path.home() / ".ray/auth_token"
    try:
        with path.open("rb") as file:
            token = file.read(MAX_TOKEN_SIZE).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        if configured:
            raise RequestError(
                f"{TOKEN_FILE_VARIABLE} is not a readable token file ({_cause(error)})"
            ) from error
        return None
    if configured and not token:
        raise RequestError(f"the token file {path} is empty")
    return _checked_token(token, str(path)) or None


def _checked_token(token: str, source: str) -> str:
    """The token, if it is valid. The error message does not contain it."""
    if not (token.isascii() and token.isprintable()):
        raise RequestError(
            f"the token in {source} is not valid: expected one line of printable characters"
        )
    return token


def _certificates() -> str | bool:
    path = os.environ.get("REQUESTS_CA_BUNDLE")
    if path and not Path(path).exists():
        raise RequestError(f"REQUESTS_CA_BUNDLE is {one_line(path)!r}, which does not exist")
    return path or True


def _unauthorized(url: str) -> str:
    if find_token():
        return (
            f"the cluster at {url} rejects the token: set the correct token in {TOKEN_VARIABLE} "
            f"or in the file {TOKEN_FILE_VARIABLE}"
        )
    return (
        f"the cluster at {url} requires a token: set it in {TOKEN_VARIABLE}, "
        f"in the file {TOKEN_FILE_VARIABLE}, or in ~/.ray/auth_token"
    )


def _cause(error: BaseException) -> str:
    cause: Any = error
    while isinstance(cause, BaseException) and (cause.__cause__ or cause.__context__):
        cause = cause.__cause__ or cause.__context__
    return one_line(getattr(cause, "strerror", None) or cause, 150)


def _server_message(error: BaseException) -> str:
    """The last line of the server's response, which follows its traceback."""
    text = str(error).strip().strip(".").replace("\\n", "\n").strip()
    lines = [line for line in text.splitlines() if line.strip()]
    return one_line(lines[-1] if lines else error, 300)
