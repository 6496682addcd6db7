"""Real servers for as long as they are asked for: MLflow's, and PostgreSQL's where its programs are installed."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.tracking.helpers import free_port

NO_POSTGRES = "no PostgreSQL server is installed: apt-get install postgresql"


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


@contextmanager
def playing(kind: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server whose answers are these; it logs nothing."""
    quiet: Any = type("Quiet", (kind,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@contextmanager
def mlflow_server(home: Path, backend: str | None = None) -> Iterator[str]:
    """The address of a server with artifacts of its own; ``backend`` None is a new SQLite database."""
    url = f"http://127.0.0.1:{free_port()}"
    options = ["--host", "127.0.0.1", "--port", url.rpartition(":")[2], "--workers", "1"]
    options += [
        "--backend-store-uri",
        backend or f"sqlite:///{home}/mlflow.db",
        "--artifacts-destination",
        str(home / "artifacts"),
    ]
    command = [sys.executable, "-m", "mlflow", "server", *options]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait(lambda: answers(f"{url}/health"), process, home / "log")
        yield url
    finally:
        end(process, signal.SIGTERM)


def postgres_programs() -> Path | None:
    """The folder of ``initdb`` and ``postgres``, the newest there is."""
    found = shutil.which("initdb")
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    return versions[-1].parent if versions else Path(found).resolve().parent if found else None


@contextmanager
def postgres_server(programs: Path) -> Iterator[str]:
    """The address of an empty database of a server of its own, on this machine only."""
    # A short path of its own: the server runs as another user where this one is root, as it insists.
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
    """A user to run as, where this is root."""
    if os.geteuid():
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)


def _wait(ready: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + 120
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"no server: {log.read_text()[-2000:]}")
        time.sleep(0.1)


def end(process: "subprocess.Popen[bytes]", sent: signal.Signals) -> None:
    process.send_signal(sent)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
