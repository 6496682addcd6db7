"""Tests the resolution of tracking URIs, and reading from a database that does not exist."""

import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from search_spaces import RequestError
from tests.tracking.servers import serving
from tinynet_search import TrackingError, frontier_models
from tinynet_search.mlflow_client.connection import address, resolve_uri

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def no_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_reading_creates_no_database(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"no searches at sqlite:////.*mlflow\.db: run tinynet search first"
    ):
        frontier_models(storage=str(tmp_path / "searches"))
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(RequestError, match="no searches at"):
        frontier_models(storage=str(tmp_path))
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("mlflow.db", 0)]
    (tmp_path / "mlflow.db").write_bytes(b"not a database" * 100)
    with pytest.raises(TrackingError, match="cannot be used: file is not a database"):
        frontier_models(storage=str(tmp_path))


def test_tracking_uri_is_resolved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    default = f"sqlite:///{tmp_path}/searches/mlflow.db"
    assert (
        resolve_uri(None, None, "searches")
        == resolve_uri(None, None, str(tmp_path / "searches"))
        == default
    )
    assert resolve_uri(None, "http://config:1", "s3://bucket/x") == "http://config:1"
    with pytest.raises(RequestError, match=r"--tracking, MLFLOW_TRACKING_URI or \[tracking\] uri"):
        resolve_uri(None, None, "s3://bucket/x")
    with pytest.raises(RequestError, match="'mlruns' is not a valid URI"):
        resolve_uri("mlruns", None, "searches")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://env:1")
    assert resolve_uri(None, "http://config:1", "searches") == "http://env:1"
    assert resolve_uri("http://flag:1", "http://config:1", "searches") == "http://flag:1"
    assert (
        address("postgresql+psycopg2://ann:secret@host:5432/db?sslcert=x")
        == "postgresql+psycopg2://host:5432/db"
    )
    assert address("http://ann:secret@host:5000/") == "http://host:5000"


def test_importing_queries_does_not_import_mlflow() -> None:
    code = (
        "import sys, tinynet_search.tracking.queries; "
        "print([m for m in ('mlflow', 'pandas', 'torch', 'ray') if m in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("status", "text", "problem"),
    [
        (401, "no such token", "rejects the token: correct MLFLOW_TRACKING_TOKEN"),
        (
            403,
            "Invalid Host header - possible DNS rebinding attack detected",
            "rejects the host name {host}: add it to --allowed-hosts "
            "(MLFLOW_SERVER_ALLOWED_HOSTS) of the server",
        ),
    ],
)
def test_server_behind_a_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, text: str, problem: str
) -> None:
    """Basic-auth responds to a token with status 500; other servers and proxies with 401."""

    class Rejecting(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def do_GET(self) -> None:
            self.do_POST()

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "wrong")
    with serving(Rejecting) as url, pytest.raises(TrackingError) as caught:
        frontier_models(tracking_uri=url)
    host = url.removeprefix("http://")
    assert str(caught.value) == f"MLflow at {url} {problem.format(host=host)}"
