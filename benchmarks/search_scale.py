"""What the driver of a search costs as searches grow: trials that take no time, through Tune alone and through a search with MLflow.

Bare: one plain Tuner. Ours: ``run_search`` with its store, and its publisher on a real MLflow server on SQLite. Both run the
same trials, two at once, on a local Ray, each size in a process of its own. A trial reports three epochs and writes its
result. Our share is ours less bare.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.measure import Row

SIZES = (100, 1000)
ROOT = Path(__file__).resolve().parents[1]
SERVER_TIMEOUT = 120.0

Taken = dict[str, Any]


def run() -> list[Row]:
    return rows_of(SIZES)


def rows_of(sizes: Sequence[int]) -> list[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        taken = {trials: _taken(trials, Path(scratch) / str(trials)) for trials in sizes}
    each = [row for trials, by_kind in taken.items() for row in _rows(trials, by_kind)]
    return [*each, *_growth(taken)]


def _taken(trials: int, folder: Path) -> dict[str, Taken]:
    """What each kind of run cost, by kind."""
    folder.mkdir()
    with server(folder / "mlflow") as uri:
        found = {
            kind: _process(kind, trials, folder, uri) for kind in ("bare", "ours", "start", "again")
        }
    if any(one["results"] != trials for one in found.values()):
        raise RuntimeError(
            f"{trials} trials left results of {[one['results'] for one in found.values()]}"
        )
    return found


def _process(kind: str, trials: int, folder: Path, uri: str) -> Taken:
    dropped = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")
    environment = {key: value for key, value in os.environ.items() if key not in dropped} | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "benchmarks.scale_run",
        kind,
        str(trials),
        str(folder / kind.replace("start", "ours").replace("again", "ours")),
    ]
    started, log = time.time(), folder / f"{kind}.log"
    with log.open("w") as said:
        done = subprocess.run(
            [*command, uri, str(started)],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            cwd=ROOT,
            env=environment,
        )
    if done.returncode:
        raise RuntimeError(
            f"{kind} of {trials} trials ended with {done.returncode}: {log.read_text()[-2000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def server(home: Path) -> Iterator[str]:
    """The address of a real MLflow server with a database of its own."""
    home.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    options += [
        "--backend-store-uri",
        f"sqlite:///{home}/mlflow.db",
        "--artifacts-destination",
        str(home / "artifacts"),
    ]
    command, environment = (
        [sys.executable, "-m", "mlflow", "server", *options],
        {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + SERVER_TIMEOUT
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("no MLflow server came up") from error
            time.sleep(0.2)


def _rows(trials: int, taken: dict[str, Taken]) -> list[Row]:
    bare, ours, start, again = (taken[kind] for kind in ("bare", "ours", "start", "again"))
    name = f"{trials:,}: "
    return [
        Row(name + "bare Tune, wall a trial", 1e3 * bare["seconds"] / trials, "ms"),
        Row(name + "a search, wall a trial", 1e3 * ours["seconds"] / trials, "ms"),
        Row(name + "MLflow complete after the search's end", ours["sync"], "s"),
        Row(name + "bare Tune, driver's CPU a trial", 1e3 * bare["cpu"] / trials, "ms"),
        Row(
            name + "our share of the driver's CPU a trial, imports and MLflow included",
            share(taken, "cpu") / trials * 1e3,
            "ms",
            50,
        ),
        Row(name + "of it the publisher's threads", 1e3 * ours["published"] / trials, "ms"),
        Row(name + "bare Tune, driver's memory at most", bare["memory"]["peak"], "MB"),
        Row(name + "a search, driver's memory at most", ours["memory"]["peak"], "MB"),
        Row(name + "bare Tune, driver's own memory at the end", bare["memory"]["uss"], "MB"),
        Row(name + "a search, driver's own memory at the end", ours["memory"]["uss"], "MB"),
        Row(
            name + "frontier over all results",
            start["frontier"],
            "s",
            1 if trials >= 10_000 else None,
        ),
        Row(name + "formula over the frontier", start["formula"], "s"),
        Row(
            name + "again: from process start to nothing to train",
            start["known"],
            "s",
            5 if trials >= 10_000 else None,
        ),
        Row(name + "again: the same beside its publisher", again["known"], "s"),
        Row(name + "again: to the process's end, MLflow looked through", again["ended"], "s"),
    ]


def share(taken: dict[str, Taken], figure: str) -> float:
    return taken["ours"][figure] - taken["bare"][figure]


def _growth(taken: dict[int, dict[str, Taken]]) -> list[Row]:
    """From size to size: what one more trial costs, and what more memory."""
    rows: list[Row] = []
    for small, large in pairwise(sorted(taken)):
        less, more = taken[small], taken[large]
        name, count = f"{small:,} to {large:,}: ", large - small
        peak = {
            kind: more[kind]["memory"]["peak"] - less[kind]["memory"]["peak"]
            for kind in ("bare", "ours")
        }
        rows += [
            Row(
                name + "bare Tune, driver's CPU a further trial",
                1e3 * (more["bare"]["cpu"] - less["bare"]["cpu"]) / count,
                "ms",
            ),
            Row(
                name + "our share of the driver's CPU a further trial",
                1e3 * (share(more, "cpu") - share(less, "cpu")) / count,
                "ms",
                50,
            ),
            Row(name + "bare Tune, more memory", peak["bare"], "MB"),
            # Tune alone keeps every trial, and a search runs it in waves: all that a search takes counts as our share.
            Row(
                name + "a search, more memory", peak["ours"], "MB", 200 if large >= 10_000 else None
            ),
        ]
    return rows
