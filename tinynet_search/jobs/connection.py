"""The Ray Jobs API of a cluster: reached within seconds, allowed in, and of the same version of Ray as here."""

import contextlib
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

# Seconds for a connection; Ray's own client waits for ever.
PATIENCE = 5.0
# Seconds for an answer: an upload of a working folder takes its time.
ANSWER = 60.0
PORTS = {"http": 80, "https": 443}
# Where Ray keeps the address of its dashboard for clients.
VARIABLE, CLUSTER = "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"
TOKEN, TOKEN_FILE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
LARGEST_TOKEN = 64 * 1024


def connect(address: str | None) -> "JobSubmissionClient":
    """A client of a cluster's jobs.

    Args:
        address: ``http://HEAD:8265``; without one RAY_API_SERVER_ADDRESS, or RAY_ADDRESS where it is of http.

    Raises:
        RequestError: no address, nobody answers there, it asks for a token or refuses the one there is, or its Ray is
            of another version.
    """
    url = _address(address)
    _probe(url)
    require_client()
    import ray

    silence_uploads()
    with reaching(url):
        try:
            with _nothing_else_named():
                client = job_client(url, _headers(), _certificates(), (PATIENCE, ANSWER))
            theirs = cluster_version(client)
        except (KeyError, TypeError) as error:
            raise RequestError(
                f"the cluster at {url} does not answer as a Ray dashboard (it tells no version)"
            ) from error
    if theirs != ray.__version__:
        mend = (
            f"pip install 'ray[default]=={theirs}' here, or bring the cluster to {ray.__version__}"
        )
        raise RequestError(
            f"the cluster at {url} runs Ray {theirs}, this machine {ray.__version__}: {mend}"
        )
    return client


@contextlib.contextmanager
def _nothing_else_named() -> Iterator[None]:
    """Ray's client would leave the address that it is given for one of the environment, and take our token there."""
    held = {name: os.environ.pop(name) for name in (VARIABLE, CLUSTER) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


@contextlib.contextmanager
def reaching(url: str) -> Iterator[None]:
    """Everything that the Jobs API and the way to it can raise, as one line.

    Raises:
        RequestError: not reachable, or not allowed in.
        JobError: it answered with an error.
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
            f"the token for the cluster at {url} is none: it must be one line of printable characters"
        ) from error
    except (requests.exceptions.RequestException, OSError) as error:
        raise RequestError(
            f"the cluster at {url} does not answer as a Ray dashboard ({_cause(error)})"
        ) from error
    except (RuntimeError, ValueError) as error:
        if reports_no_dashboard(error):
            raise RequestError(
                f"the cluster at {url} does not answer as a Ray dashboard (404)"
            ) from error
        raise JobError(f"the cluster at {url} refused: {_told(error)}") from error


def _address(given: str | None) -> str:
    named = {
        "--address": given,
        VARIABLE: os.environ.get(VARIABLE),
        CLUSTER: _web(os.environ.get(CLUSTER)),
    }
    where, url = next(((where, url) for where, url in named.items() if url), (None, None))
    if url is None:
        raise RequestError(
            f"no cluster to submit to: give --address http://HEAD:8265, or set {VARIABLE}"
        )
    try:
        parts = urlsplit(url)
        sound = parts.scheme in PORTS and parts.hostname and parts.port != 0
    except ValueError:
        parts, sound = None, False
    if parts is None or not sound:
        shown = one_line(url.rpartition("@")[2], 100)
        raise RequestError(
            f"{where} {shown!r} is no address of a Ray dashboard: give http://HEAD:8265 (not the port of Ray itself, 6379)"
        )
    if "@" in parts.netloc:
        raise RequestError(
            f"{where} carries credentials: leave them out; a token comes from {TOKEN} or {TOKEN_FILE}"
        )
    return url.rstrip("/")


def _web(address: str | None) -> str | None:
    return address if address and address.startswith(("http://", "https://")) else None


def _probe(url: str) -> None:
    parts = urlsplit(url)
    try:
        socket.create_connection(
            (parts.hostname or "", parts.port or PORTS[parts.scheme]), timeout=PATIENCE
        ).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise RequestError(
            f"no cluster answers at {url} ({reason}): give the head's dashboard, http://HEAD:8265"
        ) from error


def require_client() -> None:
    """Raises RequestError where Ray's job client is not installed."""
    from importlib.util import find_spec

    if not all(find_spec(module) for module in ("ray", "requests", "aiohttp")):
        raise RequestError(
            "this needs Ray's job client, which is not installed: pip install 'tinynet-search[submit]'"
        )


def _headers() -> dict[str, str]:
    """Ray's own client sends its token only where RAY_AUTH_MODE says so; ours wherever there is one."""
    token = find_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def find_token() -> str | None:
    """The token of this user, in Ray's own order: RAY_AUTH_TOKEN, the file of RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    Raises:
        RequestError: the file that was named cannot be read, or holds no token.
    """
    if token := os.environ.get(TOKEN, "").strip():
        return _sound(token, TOKEN)
    named = os.environ.get(TOKEN_FILE)
    path = Path(named).expanduser() if named else Path.home() / ".ray/auth_token"
    try:
        with path.open("rb") as file:
            token = file.read(LARGEST_TOKEN).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        if named:
            raise RequestError(f"{TOKEN_FILE} names no readable token ({_cause(error)})") from error
        return None
    if named and not token:
        raise RequestError(f"the token in {path} is none: the file is empty")
    return _sound(token, str(path)) or None


def _sound(token: str, where: str) -> str:
    """The token; errors never repeat it."""
    if not (token.isascii() and token.isprintable()):
        raise RequestError(
            f"the token in {where} is none: it must be one line of printable characters"
        )
    return token


def _certificates() -> str | bool:
    named = os.environ.get("REQUESTS_CA_BUNDLE")
    if named and not Path(named).exists():
        raise RequestError(f"REQUESTS_CA_BUNDLE names {one_line(named)!r}, which is not there")
    return named or True


def _unauthorized(url: str) -> str:
    if find_token():
        return f"the cluster at {url} refuses this token: ask for the right one, and put it in {TOKEN} or the file that {TOKEN_FILE} names"
    return f"the cluster at {url} asks for a token: put it in {TOKEN}, in a file that {TOKEN_FILE} names, or in ~/.ray/auth_token"


def _cause(error: BaseException) -> str:
    found: Any = error
    while isinstance(found, BaseException) and (found.__cause__ or found.__context__):
        found = found.__cause__ or found.__context__
    return one_line(getattr(found, "strerror", None) or found, 150)


def _told(error: BaseException) -> str:
    """The last line of what the server said: before it stands its traceback."""
    text = str(error).strip().strip(".").replace("\\n", "\n").strip()
    lines = [line for line in text.splitlines() if line.strip()]
    return one_line(lines[-1] if lines else error, 300)
