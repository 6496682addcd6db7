"""Context managers for real servers: MLflow, and PostgreSQL if it is installed.

Used by the tests and the benchmarks.
"""

import base64
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.tracking.helpers import free_port

ROOT = Path(__file__).resolve().parents[2]
AUTH_CONFIG = ROOT / "deploy/mlflow/auth.ini"
NO_POSTGRES = "no PostgreSQL server is installed: apt-get install postgresql"
# User id of the unprivileged account that every Linux system has.
UNPRIVILEGED_UID = 65534


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


@contextmanager
def serving(kind: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run an HTTP server with a handler class, without logging, and yield its URL."""
    quiet: Any = type("Quiet", (kind,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@contextmanager
def mlflow_server(
    home: Path,
    backend: str | None = None,
    *,
    options: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Run an MLflow server with its own artifacts and yield its URL.

    Args:
        home: folder of the server.
        backend: URI of the database; None selects a new SQLite database.
        options: more options of the server.
        settings: more environment variables of the server.
    """
    url = f"http://127.0.0.1:{free_port()}"
    address = ["--host", "127.0.0.1", "--port", url.rpartition(":")[2], "--workers", "1"]
    stores = [
        "--backend-store-uri",
        backend or f"sqlite:///{home}/mlflow.db",
        "--artifacts-destination",
        str(home / "artifacts"),
    ]
    command = [sys.executable, "-m", "mlflow", "server", *address, *stores, *options]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **(settings or {}),
    }
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait(lambda: is_up(f"{url}/health"), process, home / "log")
        yield url
    finally:
        end(process, signal.SIGTERM)


@dataclass(frozen=True)
class AccountsServer:
    """An MLflow server with accounts (basic-auth), set up like the one in deploy/.

    Attributes:
        url: URL of the server.
        passwords: password by user; the administrator is ``admin``.
    """

    url: str
    passwords: Mapping[str, str]

    def environment(self, user: str) -> dict[str, str]:
        """The variables with which a client uses the server as this user."""
        return {
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": self.passwords[user],
        }

    @contextmanager
    def account(self, user: str) -> Iterator[None]:
        """Use the server as this user in this process, and restore the variables on exit."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment(user).items():
                patch.setenv(name, value)
            yield

    def post(self, path: str, body: Mapping[str, str]) -> None:
        """Send a request as the administrator; ``path`` follows ``/api/``."""
        token = base64.b64encode(f"admin:{self.passwords['admin']}".encode()).decode()
        headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(
            f"{self.url}/api/{path}", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            assert response.status == 200


@contextmanager
def accounts_server(home: Path, *users: str) -> Iterator[AccountsServer]:
    """Run an MLflow server with accounts, and create these users.

    Args:
        home: folder of the server.
        users: names of ordinary users, who may read everything and edit what they created.
    """
    passwords = {name: secrets.token_hex(16) for name in ("admin", *users)}
    config = home / "auth.ini"
    config.write_text(
        re.sub(
            "(?m)^database_uri = .*",
            f"database_uri = sqlite:///{home}/auth.db",
            AUTH_CONFIG.read_text(),
        )
    )
    settings = {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": passwords["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
    }
    with mlflow_server(home, options=["--app-name", "basic-auth"], settings=settings) as url:
        accounts = AccountsServer(url, passwords)
        for user in users:
            body = {"username": user, "password": passwords[user]}
            accounts.post("2.0/mlflow/users/create", body)
        yield accounts


def postgres_programs() -> Path | None:
    """Return the folder of the newest ``initdb`` and ``postgres``, None if not installed."""
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    if versions:
        return versions[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


@contextmanager
def postgres_server(programs: Path) -> Iterator[str]:
    """Run a PostgreSQL server on the loopback interface and yield the URI of an empty database."""
    # A separate folder with a short path: PostgreSQL refuses to run as root, so for root the
    # server runs as another user.
    with tempfile.TemporaryDirectory(prefix="tinynet-pg-") as folder:
        user = _unprivileged()
        Path(folder).chmod(0o755)
        data, log = Path(folder) / "data", Path(folder) / "log"
        data.mkdir()
        if user:
            shutil.chown(data, user)
        make = [
            str(programs / "initdb"),
            "-D",
            str(data),
            "-U",
            "tinynet",
            "--auth=trust",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        subprocess.run(make, check=True, capture_output=True, user=user, cwd=folder)
        port = free_port()
        serve = [
            str(programs / "postgres"),
            "-D",
            str(data),
            "-p",
            str(port),
            "-k",
            str(data),
            "-c",
            "listen_addresses=127.0.0.1",
        ]
        with log.open("wb") as file:
            process = subprocess.Popen(
                serve, cwd=folder, stdout=file, stderr=file, user=user, start_new_session=True
            )
        ready = [str(programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-U", "tinynet"]
        try:
            _wait(
                lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0,
                process,
                log,
            )
            yield f"postgresql://tinynet@127.0.0.1:{port}/postgres"
        finally:
            end(process, signal.SIGINT)


def _unprivileged() -> str | None:
    """Return a user to run as if this process is root, else None."""
    if os.geteuid():
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return pwd.getpwuid(UNPRIVILEGED_UID).pw_name


def _wait(ready: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + 120
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")
        time.sleep(0.1)


def end(process: "subprocess.Popen[bytes]", stop_signal: signal.Signals) -> None:
    """Stop a process with a signal, and kill its group after 20 seconds."""
    process.send_signal(stop_signal)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
