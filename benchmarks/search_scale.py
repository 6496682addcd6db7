"""Cost of a search's driver by the number of trials, compared with plain Tune.

Run by ``python -m benchmarks.run search_scale``; the trials are simulated.

"bare" is one plain Tuner. "search" is ``run_search`` with its store, and its publisher on a real
MLflow server on SQLite. Both run the same trials on a local Ray, two at a time; each size and kind
runs in a separate process. A trial reports three epochs and writes its result. Our share is the
difference between "search" and "bare".
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

# What one process of ``scale_run`` prints.
Cost = dict[str, Any]
# Kinds of run and their folders: the reruns use the folder of the search.
KINDS = {"bare": "bare", "search": "search", "rerun_unpublished": "search", "rerun": "search"}


def run() -> list[Row]:
    return rows_of(SIZES)


def rows_of(sizes: Sequence[int]) -> list[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        costs = {trials: _costs(trials, Path(scratch) / str(trials)) for trials in sizes}
    rows = [row for trials, by_kind in costs.items() for row in _rows(trials, by_kind)]
    return [*rows, *_growth(costs)]


def _costs(trials: int, folder: Path) -> dict[str, Cost]:
    """The cost of each kind of run.

    Raises:
        RuntimeError: a run did not end with one result per trial.
    """
    folder.mkdir()
    with server(folder / "mlflow") as uri:
        costs = {kind: _process(kind, trials, folder, uri) for kind in KINDS}
    counts = {kind: cost["results"] for kind, cost in costs.items()}
    if any(count != trials for count in counts.values()):
        raise RuntimeError(f"expected {trials} results from each run, got {counts}")
    return costs


def _process(kind: str, trials: int, folder: Path, uri: str) -> Cost:
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
        str(folder / KINDS[kind]),
    ]
    started, log = time.time(), folder / f"{kind}.log"
    with log.open("w") as stderr:
        done = subprocess.run(
            [*command, uri, str(started)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=ROOT,
            env=environment,
        )
    if done.returncode:
        raise RuntimeError(
            f"{kind} of {trials} trials exited with {done.returncode}: {log.read_text()[-2000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def server(home: Path) -> Iterator[str]:
    """Start an MLflow server with a new database; yields its address."""
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
                raise RuntimeError("the MLflow server did not start") from error
            time.sleep(0.2)


def _rows(trials: int, costs: dict[str, Cost]) -> list[Row]:
    bare, search, rerun = costs["bare"], costs["search"], costs["rerun"]
    unpublished = costs["rerun_unpublished"]
    name = f"{trials:,}: "
    return [
        Row(name + "bare Tune, wall time per trial", 1e3 * bare["seconds"] / trials, "ms"),
        Row(name + "a search, wall time per trial", 1e3 * search["seconds"] / trials, "ms"),
        Row(name + "time from the search's end until MLflow is complete", search["sync"], "s"),
        Row(name + "bare Tune, driver's CPU per trial", 1e3 * bare["cpu"] / trials, "ms"),
        Row(
            name + "our share of the driver's CPU per trial, imports and MLflow included",
            share(costs, "cpu") / trials * 1e3,
            "ms",
            50,
        ),
        Row(
            name + "of this, the publisher's threads", 1e3 * search["publisher_cpu"] / trials, "ms"
        ),
        Row(name + "bare Tune, driver's peak memory", bare["memory"]["peak"], "MB"),
        Row(name + "a search, driver's peak memory", search["memory"]["peak"], "MB"),
        Row(name + "bare Tune, driver's own memory at the end", bare["memory"]["uss"], "MB"),
        Row(name + "a search, driver's own memory at the end", search["memory"]["uss"], "MB"),
        Row(
            name + "frontier over all results",
            unpublished["frontier"],
            "s",
            1 if trials >= 10_000 else None,
        ),
        Row(name + "formula over the frontier", unpublished["formula"], "s"),
        Row(
            name + "rerun: from process start until it is known that nothing is left to train",
            unpublished["known"],
            "s",
            5 if trials >= 10_000 else None,
        ),
        Row(name + "rerun: the same with its publisher", rerun["known"], "s"),
        Row(
            name + "rerun: until the process ends, including the check of MLflow",
            rerun["ended"],
            "s",
        ),
    ]


def share(costs: dict[str, Cost], figure: str) -> float:
    """The project's share of a figure: that of the search less that of plain Tune."""
    return costs["search"][figure] - costs["bare"][figure]


def _growth(costs: dict[int, dict[str, Cost]]) -> list[Row]:
    """From each size to the next: the cost of one additional trial, and the additional memory."""
    rows: list[Row] = []
    for small, large in pairwise(sorted(costs)):
        less, more = costs[small], costs[large]
        name, count = f"{small:,} to {large:,}: ", large - small
        peak = {
            kind: more[kind]["memory"]["peak"] - less[kind]["memory"]["peak"]
            for kind in ("bare", "search")
        }
        rows += [
            Row(
                name + "bare Tune, driver's CPU per additional trial",
                1e3 * (more["bare"]["cpu"] - less["bare"]["cpu"]) / count,
                "ms",
            ),
            Row(
                name + "our share of the driver's CPU per additional trial",
                1e3 * (share(more, "cpu") - share(less, "cpu")) / count,
                "ms",
                50,
            ),
            Row(name + "bare Tune, additional memory", peak["bare"], "MB"),
            # Plain Tune keeps every trial and a search runs Tune in waves, so all of the search's
            # memory counts as our share.
            Row(
                name + "a search, additional memory",
                peak["search"],
                "MB",
                200 if large >= 10_000 else None,
            ),
        ]
    return rows
