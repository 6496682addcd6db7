"""Services of a cluster other than Ray: PostgreSQL, MLflow with accounts, and an S3 store.

The cluster test starts them in the same way as the deploy files.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.hosts.hosts import GATEWAY
from tests.tracking.helpers import free_port
from tests.tracking.servers import end, is_up, postgres_programs, postgres_server

ROOT = Path(__file__).resolve().parents[2]
SETUP_SCRIPT, AUTH_CONFIG = ROOT / "deploy/mlflow/setup.py", ROOT / "deploy/mlflow/auth.ini"


def secret() -> str:
    return secrets.token_hex(16)


@dataclass(frozen=True)
class Services:
    """The addresses and the secrets of the services.

    Attributes:
        mlflow: URL of the MLflow server.
        s3: URL of the S3 server.
        client: environment of the clients, which are Ray's nodes.
    """

    mlflow: str
    s3: str
    token: str = field(default_factory=secret)
    admin_password: str = field(default_factory=secret)
    user_password: str = field(default_factory=secret)
    s3_secret: str = field(default_factory=secret)
    flask_key: str = field(default_factory=secret)

    @property
    def secrets(self) -> list[str]:
        return [self.token, self.admin_password, self.user_password, self.s3_secret, self.flask_key]

    @property
    def client(self) -> dict[str, str]:
        """The environment that deploy/ sets on every node."""
        return {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": "/tmp/tinynet-ray",
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            # By default Gloo binds to the address of the host name, which is a loopback address
            # here and on many Debian systems.
            "GLOO_SOCKET_IFNAME": "eth0",
            "NO_PROXY": "127.0.0.1,10.77.0.0/24",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "MLFLOW_TRACKING_URI": self.mlflow,
            "MLFLOW_TRACKING_USERNAME": "searches",
            "MLFLOW_TRACKING_PASSWORD": self.user_password,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "AWS_ACCESS_KEY_ID": "tinynet",
            "AWS_SECRET_ACCESS_KEY": self.s3_secret,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def s3_options(self) -> str:
        """The query string of a storage URL."""
        return f"endpoint_override={self.s3.removeprefix('http://')}&scheme=http&region=us-east-1"


@contextmanager
def services(home: Path) -> Iterator[Services]:
    """Start all services on the hosts' gateway, and PostgreSQL on the loopback address only."""
    programs = postgres_programs()
    assert programs is not None
    deployment = Services(f"http://{GATEWAY}:{free_port()}", f"http://{GATEWAY}:{free_port()}")
    aws = {key: deployment.client[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    s3 = {
        **os.environ,
        **aws,
        "MLFLOW_S3_ENDPOINT_URL": deployment.s3,
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow/artifacts",
    }
    with ExitStack() as stack:
        port = deployment.s3.rpartition(":")[2]
        store = [sys.executable, "-m", "moto.server", "--host", GATEWAY, "--port", port]
        stack.enter_context(
            _server("s3", store, dict(os.environ), home, lambda: is_up(deployment.s3))
        )
        _run([sys.executable, str(SETUP_SCRIPT), "bucket"], s3)
        _run(
            [sys.executable, str(SETUP_SCRIPT), "bucket"],
            {**s3, "MLFLOW_ARTIFACTS_DESTINATION": "s3://searches"},
        )
        database = stack.enter_context(postgres_server(programs))
        _create_databases(programs, database, "mlflow", "mlflow_auth")
        auth = home / "auth.ini"
        auth.write_text(
            AUTH_CONFIG.read_text().replace(
                "postgresql://mlflow@postgres:5432/mlflow_auth",
                _database_url(database, "mlflow_auth"),
            )
        )
        host = deployment.mlflow.removeprefix("http://")
        settings = {
            "MLFLOW_BACKEND_STORE_URI": _database_url(database, "mlflow"),
            "MLFLOW_AUTH_CONFIG_PATH": str(auth),
            "MLFLOW_AUTH_ADMIN_PASSWORD": deployment.admin_password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": deployment.flask_key,
            "MLFLOW_SERVER_ALLOWED_HOSTS": host,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        address = ["--host", GATEWAY, "--port", host.rpartition(":")[2]]
        serve = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            *address,
            "--app-name",
            "basic-auth",
            "--workers",
            "1",
        ]
        stack.enter_context(
            _server(
                "mlflow",
                serve,
                {**s3, **settings},
                home,
                lambda: is_up(f"{deployment.mlflow}/health"),
            )
        )
        _run(
            [sys.executable, str(SETUP_SCRIPT), "user"],
            {**deployment.client, "MLFLOW_AUTH_ADMIN_PASSWORD": deployment.admin_password},
        )
        yield deployment


def _database_url(database: str, name: str) -> str:
    """The URL of another database on the same server."""
    return f"{database.rpartition('/')[0]}/{name}"


def _create_databases(programs: Path, database: str, *names: str) -> None:
    for name in names:
        _run([str(programs / "psql"), database, "-c", f"create database {name}"], dict(os.environ))


def _run(command: list[str], environment: dict[str, str]) -> None:
    completed = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert completed.returncode == 0, (command, completed.stdout, completed.stderr)


@contextmanager
def _server(
    name: str,
    command: list[str],
    environment: dict[str, str],
    home: Path,
    ready: Callable[[], bool],
) -> Iterator[None]:
    """Run a server process inside the context, which starts when ``ready`` returns true."""
    log = home / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=home, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while not ready():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield
    finally:
        end(process, signal.SIGTERM)
