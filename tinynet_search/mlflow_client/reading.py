"""Runs read back from MLflow.

From a server that asks for nothing but its address they are read with the standard library: to import MLflow's client
and have it unpack two thousand runs takes longer than the server's answer. Everything else is left to that client, and
so is whatever goes wrong, as its errors are known here.
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
    MANNERS,
    connect,
    refuse_endless,
    search_runs,
)
from tinynet_search.text import mebibytes

PAGE = 1000
# Bytes of a page: ours have a tenth of it.
LARGEST_PAGE = 64 * 2**20
OURS = "name LIKE 'tinynet-%'"
NEWEST_FIRST = ["attributes.start_time DESC"]
# How a server may want to be spoken to, which MLflow's client knows.
_SPECIAL = (
    "USERNAME",
    "PASSWORD",
    "TOKEN",
    "INSECURE_TLS",
    "SERVER_CERT_PATH",
    "CLIENT_CERT_PATH",
    "AUTH",
    "AWS_SIGV4",
)

Answer = TypeVar("Answer")


class Found(NamedTuple):
    """A run, with the last value of each metric."""

    run_id: str
    name: str | None
    status: str
    experiment_id: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


class _Query(TypedDict, total=False):
    """What a server is asked for in a search of experiments or runs."""

    experiment_ids: Sequence[str]
    filter: str
    order_by: Sequence[str]


class RunReader(NamedTuple):
    """Two questions.

    Attributes:
        experiments: (id, name) of this project's experiments.
        runs: the active runs of experiments that a filter finds, newest first.
    """

    experiments: Callable[[], list[tuple[str, str]]]
    runs: Callable[[Sequence[str], str], list[Found]]


def read(uri: str, ask: Callable[[RunReader], Answer]) -> Answer:
    """What ``ask`` makes of MLflow's answers. To be used within ``reaching``."""
    if _plain(uri):
        try:
            return ask(_over_http(uri.rstrip("/")))
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
            pass  # MLflow's client says what it was, or gets along
    with _collector_paused():
        return ask(_by_client(uri))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Spare Python's cyclic garbage collector the objects that MLflow makes of each run: they all stay.

    They are a hundred thousand for two thousand runs of a database, and half of the time went into looking at them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _plain(uri: str) -> bool:
    special = [name for name in _SPECIAL if os.environ.get(f"MLFLOW_TRACKING_{name}")]
    known = Path("~/.mlflow/credentials").expanduser().exists() or os.environ.get(
        "MLFLOW_WORKSPACE"
    )
    return (
        uri.startswith(("http://", "https://"))
        and "@" not in urlsplit(uri).netloc
        and not special
        and not known
    )


def _by_client(uri: str) -> RunReader:
    client = connect(uri)

    def runs(experiments: Sequence[str], wanted: str) -> list[Found]:
        return [
            Found(
                run.info.run_id,
                run.info.run_name,
                run.info.status,
                run.info.experiment_id,
                run.data.metrics,
                run.data.tags,
            )
            for run in search_runs(client, list(experiments), wanted)
        ]

    return RunReader(
        lambda: [
            (each.experiment_id, each.name)
            for each in client.search_experiments(filter_string=OURS)
        ],
        runs,
    )


def _over_http(server: str) -> RunReader:
    patience = float(
        os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", MANNERS["MLFLOW_HTTP_REQUEST_TIMEOUT"])
    )

    def pages(kind: str, query: _Query) -> list[Any]:
        found: list[Any] = []
        token: str | None = None
        while True:
            asked = {**query, "max_results": PAGE} | ({"page_token": token} if token else {})
            body = json.dumps(asked).encode()
            request = Request(
                f"{server}/api/2.0/mlflow/{kind}/search", body, {"Content-Type": "application/json"}
            )
            with urlopen(request, timeout=patience) as answer:
                text = answer.read(LARGEST_PAGE + 1)
            if len(text) > LARGEST_PAGE:
                raise RequestError(
                    f"a page of MLflow's {kind} at {server} has more than {mebibytes(LARGEST_PAGE)}: it is not ours"
                )
            page = json.loads(text)
            some = page.get(kind, [])
            found += some
            token = page.get("next_page_token")
            if not some or not token:
                return found
            refuse_endless(len(found))

    def runs(experiments: Sequence[str], wanted: str) -> list[Found]:
        return [
            _found(run)
            for run in pages(
                "runs", {"experiment_ids": experiments, "filter": wanted, "order_by": NEWEST_FIRST}
            )
        ]

    return RunReader(
        lambda: [
            (each["experiment_id"], each["name"]) for each in pages("experiments", {"filter": OURS})
        ],
        runs,
    )


def _found(run: Any) -> Found:
    """A run of a server's answer. It is not checked: what goes wrong here is left to MLflow's client."""
    info, data = run["info"], run["data"]
    metrics = {metric["key"]: float(metric["value"]) for metric in data.get("metrics", [])}
    tags = {str(tag["key"]): str(tag["value"]) for tag in data.get("tags", [])}
    return Found(
        str(info["run_id"]),
        str(info.get("run_name") or ""),
        str(info["status"]),
        str(info["experiment_id"]),
        metrics,
        tags,
    )
