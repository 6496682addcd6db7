"""Runs read back from MLflow.

From a server that asks for nothing but its address they are read with the standard library: to import MLflow's client
and have it unpack two thousand runs takes longer than the server's answer. Everything else is left to that client, and
so is whatever goes wrong, as its errors are known here.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

from search_spaces.errors import RequestError
from tinynet_search.mlflow_client.connection import (
    MANNERS,
    connect,
    is_served,
    refuse_endless,
    search_runs,
)
from trainables.storage.documents import SMALL

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


class RunReader(NamedTuple):
    """Three questions.

    Attributes:
        experiments: (id, name) of ours.
        runs: the active ones of experiments that a filter finds, newest first.
        text: a file of a run; None where it cannot be had, or is larger than any of ours.
    """

    experiments: Callable[[], list[tuple[str, str]]]
    runs: Callable[[Sequence[str], str], list[Found]]
    text: Callable[[str, str], str | None]


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
    return ask(_by_client(uri))


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

    def text(run_id: str, path: str) -> str | None:
        if not is_served(uri) and not (client.get_run(run_id).info.artifact_uri or "").startswith(
            ("file:", "/")
        ):
            return None  # a server's database without its server
        with (
            tempfile.TemporaryDirectory() as folder,
            suppress(Exception),
        ):  # whatever a store of artifacts and its libraries raise
            sizes = {item.path: item.file_size or 0 for item in client.list_artifacts(run_id)}
            if sizes.get(path, SMALL + 1) <= SMALL:
                file = Path(client.download_artifacts(run_id, path, folder))
                return _text(file.read_bytes()) if file.stat().st_size <= SMALL else None
        return None

    return RunReader(
        lambda: [
            (each.experiment_id, each.name)
            for each in client.search_experiments(filter_string=OURS)
        ],
        runs,
        text,
    )


def _over_http(server: str) -> RunReader:
    patience = float(
        os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", MANNERS["MLFLOW_HTTP_REQUEST_TIMEOUT"])
    )

    def pages(kind: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            body = json.dumps({**asked, "max_results": PAGE}).encode()
            request = Request(
                f"{server}/api/2.0/mlflow/{kind}/search", body, {"Content-Type": "application/json"}
            )
            with urlopen(request, timeout=patience) as answer:
                text = answer.read(LARGEST_PAGE + 1)
            if len(text) > LARGEST_PAGE:
                raise RequestError(
                    f"a page of MLflow's {kind} at {server} has more than {LARGEST_PAGE / 2**20:.0f} MiB: it is not ours"
                )
            page = json.loads(text)
            some = page.get(kind, [])
            found += some
            if not some or not page.get("next_page_token"):
                return found
            refuse_endless(len(found))
            asked = {**asked, "page_token": page["next_page_token"]}

    def runs(experiments: Sequence[str], wanted: str) -> list[Found]:
        return [
            _found(run)
            for run in pages(
                "runs", {"experiment_ids": experiments, "filter": wanted, "order_by": NEWEST_FIRST}
            )
        ]

    def text(run_id: str, path: str) -> str | None:
        try:
            with urlopen(
                f"{server}/get-artifact?{urlencode({'run_uuid': run_id, 'path': path})}",
                timeout=patience,
            ) as answer:
                return _text(answer.read(SMALL + 1))
        except (OSError, HTTPException):
            return None

    return RunReader(
        lambda: [
            (each["experiment_id"], each["name"]) for each in pages("experiments", {"filter": OURS})
        ],
        runs,
        text,
    )


def _text(data: bytes) -> str | None:
    try:
        return data.decode() if len(data) <= SMALL else None
    except UnicodeDecodeError:
        return None


def _found(run: Mapping[str, Any]) -> Found:
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
