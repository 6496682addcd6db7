"""Tests the limits on responses of a server that imitates MLflow and returns endless pages."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from search_spaces import RequestError
from tests.tracking.servers import serving
from tinynet_search import frontier_models
from tinynet_search.mlflow_client import connection, reading


class Endless(BaseHTTPRequestHandler):
    """A server whose list of runs has no last page."""

    protocol_version = "HTTP/1.1"
    runs, padding = 50, 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/experiments/search"):
            return self._send({"experiments": [{"experiment_id": "1", "name": "tinynet/own"}]})
        tags = [{"key": "tinynet.search", "value": "x" * self.padding}]
        run = {
            "info": {"run_id": "0", "status": "FINISHED", "experiment_id": "1"},
            "data": {"tags": tags},
        }
        return self._send({"runs": [run] * self.runs, "next_page_token": "more"})

    def do_GET(self) -> None:
        self._send({"experiments": []})

    def _send(self, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def endless() -> Iterator[tuple[str, type[Endless]]]:
    kind = type("Own", (Endless,), {})
    with serving(kind) as url:
        yield url, kind


@pytest.mark.parametrize("credentials", [False, True])
def test_number_of_runs_is_limited(
    endless: tuple[str, type[Endless]], monkeypatch: pytest.MonkeyPatch, credentials: bool
) -> None:
    """With the standard library, and with MLflow's client if there are credentials."""
    monkeypatch.setattr(connection, "MAX_RUNS", 1000)
    if credentials:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "someone")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    with pytest.raises(RequestError, match="MLflow returned more than 1,000 runs: select one"):
        frontier_models(tracking_uri=endless[0])


def test_size_of_a_page_is_limited(
    endless: tuple[str, type[Endless]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, kind = endless
    kind.padding = 1000
    monkeypatch.setattr(reading, "MAX_PAGE_BYTES", 20_000)
    with pytest.raises(
        RequestError, match=r"a page of MLflow's runs at http://127\.0\.0\.1:\d+ is larger than"
    ):
        frontier_models(tracking_uri=url)
