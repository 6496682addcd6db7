"""Reads runs back from MLflow.

A server that needs no credentials is read with the standard library, because importing MLflow's
client and parsing two thousand runs with it takes longer than the server's response. Everything
else, including every failure, goes through MLflow's client, whose errors are handled in
``connection``. Used by ``tinynet_search.tracking.queries``.
"""

import gc
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from search_spaces.errors import RequestError
from tinynet_search.mlflow_client.connection import (
    MLFLOW_DEFAULTS,
    check_run_count,
    connect,
    search_runs,
)
from tinynet_search.mlflow_client.experiments import MARKED, marked_experiments
from tinynet_search.text import mebibytes

PAGE_SIZE = 1000
# Maximum size of a response page; a page of this project's runs has about a tenth of it.
MAX_PAGE_BYTES = 64 * 2**20
NEWEST_FIRST = ["attributes.start_time DESC"]
# Suffixes of the MLFLOW_TRACKING_* variables that only MLflow's client implements.
_CLIENT_SETTINGS = (
    "USERNAME",
    "PASSWORD",
    "TOKEN",
    "INSECURE_TLS",
    "SERVER_CERT_PATH",
    "CLIENT_CERT_PATH",
    "AUTH",
    "AWS_SIGV4",
)

Result = TypeVar("Result")


class RunRecord(NamedTuple):
    """A run with the last value of each metric; ``start`` in ms since 1970."""

    run_id: str
    name: str | None
    status: str
    experiment_id: str
    start: int
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


class _Query(TypedDict, total=False):
    """The body of a search request for experiments or runs."""

    experiment_ids: Sequence[str]
    filter: str
    order_by: Sequence[str]


class RunReader(NamedTuple):
    """The two queries that reading a search needs.

    Attributes:
        experiments: returns (id, name) of this project's experiments.
        runs: returns the active runs that match a filter, newest first; takes the experiment ids
            and the filter.
    """

    experiments: Callable[[], list[tuple[str, str]]]
    runs: Callable[[Sequence[str], str], list[RunRecord]]


def read(uri: str, query: Callable[[RunReader], Result]) -> Result:
    """Return the result of ``query``, which is called with a reader.

    Must be used within ``mlflow_access``. ``query`` is called a second time, with a reader on
    MLflow's client, if reading with the standard library fails.
    """
    if _is_plain_http(uri):
        try:
            return query(_http_reader(uri.rstrip("/")))
        except RequestError:
            raise
        except (
            OSError,
            HTTPException,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ):
            pass  # MLflow's client reports the error, or succeeds
    with _gc_paused():
        return query(_client_reader(uri))


@contextmanager
def _gc_paused() -> Iterator[None]:
    """Pause Python's cyclic garbage collector while MLflow creates its objects for the runs.

    All of them stay alive. Two thousand runs of a database are a hundred thousand objects, and
    half of the time was spent scanning them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _is_plain_http(uri: str) -> bool:
    """Whether the URI is of a server that needs neither credentials nor client settings."""
    if not uri.startswith(("http://", "https://")) or "@" in urlsplit(uri).netloc:
        return False
    if any(os.environ.get(f"MLFLOW_TRACKING_{name}") for name in _CLIENT_SETTINGS):
        return False
    credentials = Path("~/.mlflow/credentials").expanduser()
    return not credentials.exists() and not os.environ.get("MLFLOW_WORKSPACE")


def _client_reader(uri: str) -> RunReader:
    client = connect(uri)

    def runs(experiments: Sequence[str], query: str) -> list[RunRecord]:
        return [
            RunRecord(
                run.info.run_id,
                run.info.run_name,
                run.info.status,
                run.info.experiment_id,
                run.info.start_time or 0,
                run.data.metrics,
                run.data.tags,
            )
            for run in search_runs(client, list(experiments), query)
        ]

    return RunReader(
        lambda: [(each.experiment_id, each.name) for each in marked_experiments(client)],
        runs,
    )


def _http_reader(server: str) -> RunReader:
    timeout = float(
        os.environ.get(
            "MLFLOW_HTTP_REQUEST_TIMEOUT", MLFLOW_DEFAULTS["MLFLOW_HTTP_REQUEST_TIMEOUT"]
        )
    )

    def pages(kind: str, query: _Query) -> list[Any]:
        items: list[Any] = []
        token: str | None = None
        while True:
            document = {**query, "max_results": PAGE_SIZE}
            if token:
                document["page_token"] = token
            body = json.dumps(document).encode()
            request = Request(
                f"{server}/api/2.0/mlflow/{kind}/search", body, {"Content-Type": "application/json"}
            )
            with urlopen(request, timeout=timeout) as response:
                text = response.read(MAX_PAGE_BYTES + 1)
            if len(text) > MAX_PAGE_BYTES:
                raise RequestError(
                    f"a page of MLflow's {kind} at {server} is larger than "
                    f"{mebibytes(MAX_PAGE_BYTES)}: expected {kind} of this project"
                )
            page = json.loads(text)
            page_items = page.get(kind, [])
            items += page_items
            token = page.get("next_page_token")
            if not page_items or not token:
                return items
            check_run_count(len(items))

    def runs(experiments: Sequence[str], query: str) -> list[RunRecord]:
        records = pages(
            "runs", {"experiment_ids": experiments, "filter": query, "order_by": NEWEST_FIRST}
        )
        return [_run_record(run) for run in records]

    return RunReader(
        lambda: [
            (each["experiment_id"], each["name"])
            for each in pages("experiments", {"filter": MARKED})
        ],
        runs,
    )


def _run_record(run: Any) -> RunRecord:
    """Convert a run of a server's response.

    The response is not validated: if this fails, the run is read through MLflow's client.
    """
    info, data = run["info"], run["data"]
    metrics = {metric["key"]: float(metric["value"]) for metric in data.get("metrics", [])}
    tags = {str(tag["key"]): str(tag["value"]) for tag in data.get("tags", [])}
    return RunRecord(
        str(info["run_id"]),
        str(info.get("run_name") or ""),
        str(info["status"]),
        str(info["experiment_id"]),
        int(info.get("start_time") or 0),
        metrics,
        tags,
    )
