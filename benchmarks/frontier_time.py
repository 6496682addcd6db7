"""`tinynet frontier` as a whole process at 1,000 and 10,000 trials, by each way of reading MLflow.

A fifth of the trials are on the frontier. MLflow is a server on PostgreSQL, a server on SQLite, and an SQLite file.
Each command is timed with the search published and nothing else under way, and while a search runs: then a publisher
writes the epochs of four trials at a time into the same MLflow.

The ways of reading take turns within a round, since other processes share the machine. Where nothing else is under way,
the CPU time of the command and the server together is what the command would take on an idle machine: one waits for
the other.
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
    filled,
    multiply,
    on_postgres,
    on_sqlite,
    searched,
)
from tests.tracking.helpers import calm
from tests.tracking.servers import NO_POSTGRES, mlflow_server, postgres_programs, postgres_server
from tinynet_search.mlflow_client.connection import is_served

# Seconds that the command may take, by the number of trials.
LIMITS = {1_000: 2.0, 10_000: 5.0}
ROUNDS = 3
RUNNING = "a search runs"
# What is changed in the process of the command before it runs.
NO_READER = "from tinynet_search.mlflow_client import reading; reading._plain = lambda uri: False"
READERS = {"HTTP reader": "", "MLflow's client": NO_READER}
COMMANDS = {"tinynet frontier": (), "tinynet frontier --json": ("--json",)}
PUBLISH = "import sys; from benchmarks.frontier_time import keep_publishing; keep_publishing(*sys.argv[1:])"


def run() -> list[Row]:
    rows: list[Row] = []
    with calm(), tempfile.TemporaryDirectory() as folder:
        # A slow answer on a busy machine is measured, not refused.
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "60"
        programs = postgres_programs()
        if programs is None:
            print(f"frontier_time: {NO_POSTGRES}", file=sys.stderr)
        else:
            with postgres_server(programs) as database:
                home = _made(folder, "postgres")
                with mlflow_server(home, database) as uri:
                    rows += _timed("PostgreSQL server", home, uri, lambda: on_postgres(database))
        home = _made(folder, "sqlite")
        with mlflow_server(home) as uri:
            rows += _timed("SQLite server", home, uri, lambda: on_sqlite(home / "mlflow.db"))
        file = _made(folder, "file") / "mlflow.db"
        rows += _timed("SQLite file", file.parent, f"sqlite:///{file}", lambda: on_sqlite(file))
    return rows


def _made(folder: str, name: str) -> Path:
    home = Path(folder) / name
    home.mkdir()
    return home


def _name(trials: int) -> str:
    return f"scale-{trials}"


def _timed(
    place: str, home: Path, uri: str, opened: Callable[[], AbstractContextManager[Execute]]
) -> list[Row]:
    """The rows of one MLflow; ``opened`` gives SQL on its database."""
    readers = READERS if is_served(uri) else {"MLflow's client": NO_READER}
    rows: list[Row] = []
    for trials in LIMITS:
        filled(home, uri, SEEDS, _name(trials))
        with opened() as execute:
            multiply(execute, trials, _name(trials))
        rows += _rows(f"{place}, {trials:,} trials", uri, trials, readers)
        with _publishing(home, uri):
            rows += _rows(f"{place}, {trials:,} trials, {RUNNING}", uri, trials, readers)
    return rows


def _rows(where: str, uri: str, trials: int, readers: dict[str, str]) -> list[Row]:
    rows: list[Row] = []
    for command, flags in COMMANDS.items():
        walls: dict[str, list[float]] = {name: [] for name in readers}
        cpus: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(ROUNDS):
            for name, patch in readers.items():
                cpu, wall = _cpu_seconds(), time.perf_counter()
                _ask(uri, trials, patch, flags)
                walls[name].append(time.perf_counter() - wall)
                cpus[name].append(_cpu_seconds() - cpu)
        for name, seconds in walls.items():
            what = f"{where}: {command}, {name}"
            timed = [
                Row(f"{what}, median", median(seconds), "s", LIMITS[trials]),
                Row(f"{what}, least", min(seconds), "s"),
            ]
            if RUNNING not in where:  # else the publisher's is among it
                timed.append(Row(f"{what}, CPU", min(cpus[name]), "s"))
            print(*(f"{row.name} {row.value:.2f}" for row in timed), sep="\n", file=sys.stderr)
            rows += timed
    return rows


def _cpu_seconds() -> float:
    """CPU time of every process below this one, those that have ended included, as Linux counts it."""
    parents: dict[int, int] = {}
    ticks: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            values = file.read_text().rpartition(")")[2].split()
            pid = int(file.parent.name)
            parents[pid] = int(values[1])
            # Its own time in user and system mode, and that of its children that have ended.
            ticks[pid] = [int(value) for value in values[11:15]]
    total, below = 0, [os.getpid()]
    while below:
        parent = below.pop()
        total += sum(ticks[parent][2 if parent == os.getpid() else 0 :])
        below += [pid for pid, above in parents.items() if above == parent]
    return total / os.sysconf("SC_CLK_TCK")


def _ask(uri: str, trials: int, patch: str, flags: Sequence[str]) -> None:
    code = f"{patch}\nfrom tinynet_search.cli.main import main\nmain()"
    arguments = ["frontier", "--search", _name(trials), "--tracking", uri, *flags]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=True)
    models = round(FRONTIER * trials)
    assert (done.stdout.count(b"run_id") if flags else done.stdout.count(b"\n")) >= models


@contextmanager
def _publishing(home: Path, uri: str) -> Iterator[None]:
    """A driver's publisher in a process of its own."""
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
    """Four trials at a time end an epoch each second, and are published as a driver does, until the process is killed."""
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
