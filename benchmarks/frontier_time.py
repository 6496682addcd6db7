"""Time of the ``tinynet frontier`` process at 1,000 and 10,000 trials, by MLflow reader.

Run by ``python -m benchmarks.run frontier_time``.

A fifth of the trials are on the frontier. MLflow is a server on PostgreSQL, a server on SQLite, and
an SQLite file. Each command is timed twice: on a published search without other activity, and while
a search runs, with a publisher that writes the epochs of four concurrent trials to the same MLflow.

The readers alternate within a round, since other processes share the machine. Without other
activity, the CPU time of the command and the server together is the wall time on an idle machine,
because the command and the server wait for each other.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from statistics import median

from benchmarks.measure import Row
from benchmarks.tracking_scale import (
    FRONTIER,
    SEEDS,
    Execute,
    multiply,
    on_postgres,
    on_sqlite,
    publish_finished,
    searched,
)
from tests.tracking.helpers import tracking_environment
from tests.tracking.servers import NO_POSTGRES, mlflow_server, postgres_programs, postgres_server
from tinynet_search.mlflow_client.connection import is_served

# Seconds that the command may take, by the number of trials.
LIMITS = {1_000: 2.0, 10_000: 5.0}
ROUNDS = 3
RUNNING = "a search runs"
# Code that runs in the command's process before the command, to force a reader.
NO_READER = "from tinynet_search.mlflow_client import reading; reading._plain = lambda uri: False"
READERS = {"HTTP reader": "", "MLflow's client": NO_READER}
COMMANDS = {"tinynet frontier": (), "tinynet frontier --json": ("--json",)}
PUBLISH = (
    "import sys; from benchmarks.frontier_time import keep_publishing; "
    "keep_publishing(*sys.argv[1:])"
)


def run() -> list[Row]:
    rows: list[Row] = []
    with tracking_environment(), tempfile.TemporaryDirectory() as folder:
        # A slow response on a busy machine is measured and must not time out.
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "60"
        programs = postgres_programs()
        if programs is None:
            print(f"frontier_time: {NO_POSTGRES}", file=sys.stderr)
        else:
            with postgres_server(programs) as database:
                home = _home(folder, "postgres")
                with mlflow_server(home, database) as uri:
                    rows += _timed("PostgreSQL server", home, uri, lambda: on_postgres(database))
        home = _home(folder, "sqlite")
        with mlflow_server(home) as uri:
            rows += _timed("SQLite server", home, uri, lambda: on_sqlite(home / "mlflow.db"))
        file = _home(folder, "file") / "mlflow.db"
        rows += _timed("SQLite file", file.parent, f"sqlite:///{file}", lambda: on_sqlite(file))
    return rows


def _home(folder: str, name: str) -> Path:
    home = Path(folder) / name
    home.mkdir()
    return home


def _name(trials: int) -> str:
    return f"scale-{trials}"


def _timed(
    place: str, home: Path, uri: str, opened: Callable[[], AbstractContextManager[Execute]]
) -> list[Row]:
    """The rows of one MLflow.

    Args:
        opened: opens a connection that executes SQL on MLflow's database.
    """
    readers = READERS if is_served(uri) else {"MLflow's client": NO_READER}
    rows: list[Row] = []
    for trials in LIMITS:
        publish_finished(home, uri, SEEDS, _name(trials))
        with opened() as execute:
            multiply(execute, trials, _name(trials))
        rows += _rows(f"{place}, {trials:,} trials", uri, trials, readers)
        with _publishing(home, uri):
            rows += _rows(f"{place}, {trials:,} trials, {RUNNING}", uri, trials, readers)
    return rows


def _rows(case: str, uri: str, trials: int, readers: dict[str, str]) -> list[Row]:
    rows: list[Row] = []
    for command, flags in COMMANDS.items():
        walls: dict[str, list[float]] = {name: [] for name in readers}
        cpus: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(ROUNDS):
            for name, patch in readers.items():
                cpu, wall = _cpu_seconds(), time.perf_counter()
                _run_command(uri, trials, patch, flags)
                walls[name].append(time.perf_counter() - wall)
                cpus[name].append(_cpu_seconds() - cpu)
        for name, seconds in walls.items():
            prefix = f"{case}: {command}, {name}"
            timed = [
                Row(f"{prefix}, median", median(seconds), "s", LIMITS[trials]),
                Row(f"{prefix}, least", min(seconds), "s"),
            ]
            if RUNNING not in case:  # otherwise the CPU time includes the publisher's
                timed.append(Row(f"{prefix}, CPU", min(cpus[name]), "s"))
            print(*(f"{row.name} {row.value:.2f}" for row in timed), sep="\n", file=sys.stderr)
            rows += timed
    return rows


def _cpu_seconds() -> float:
    """CPU seconds of all descendants of this process, including those that have ended (Linux)."""
    parents: dict[int, int] = {}
    ticks: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has just ended
            values = file.read_text().rpartition(")")[2].split()
            pid = int(file.parent.name)
            parents[pid] = int(values[1])
            # User and system time of the process, then those of its children that have ended.
            ticks[pid] = [int(value) for value in values[11:15]]
    total, pending = 0, [os.getpid()]
    while pending:
        process = pending.pop()
        total += sum(ticks[process][2 if process == os.getpid() else 0 :])
        pending += [pid for pid, parent in parents.items() if parent == process]
    return total / os.sysconf("SC_CLK_TCK")


def _run_command(uri: str, trials: int, patch: str, flags: Sequence[str]) -> None:
    code = f"{patch}\nfrom tinynet_search.cli.main import main\nmain()"
    arguments = ["frontier", "--search", _name(trials), "--tracking", uri, *flags]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=True)
    models = round(FRONTIER * trials)
    assert (done.stdout.count(b"run_id") if flags else done.stdout.count(b"\n")) >= models


@contextmanager
def _publishing(home: Path, uri: str) -> Iterator[None]:
    """Run a driver's publisher in a separate process."""
    live = home / "live"
    live.mkdir(exist_ok=True)
    name = f"live-{time.monotonic_ns()}"
    process = subprocess.Popen(
        [sys.executable, "-c", PUBLISH, str(live), name, uri], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout and process.stdout.readline() == b"published\n"
        yield
    finally:
        process.kill()
        process.wait()


def keep_publishing(home: str, name: str, uri: str) -> None:
    """Publish a running search, as a driver does, until the process is killed.

    Four trials run concurrently; each finishes one epoch per second.
    """
    search = searched(Path(home), name, 400)
    publisher = search.publisher(uri, [])
    publisher.start()
    waiting = list(search.candidates)
    while waiting:
        trials, waiting = waiting[:4], waiting[4:]
        for epoch in range(1, 11):
            for candidate in trials:
                search.commit(candidate, epoch)
            time.sleep(1.0)
            if publisher.epochs_sent and len(waiting) == 396:
                print("published", flush=True)
        for candidate in trials:
            search.end(candidate)
