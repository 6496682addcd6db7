"""Cost of the publisher per trial over HTTP, and its start on an MLflow server with 10,000 trials.

Run by ``python -m benchmarks.run tracking_scale``; ``frontier_time`` and the PostgreSQL tests use
its functions. The publisher publishes a search of 40 trials to a real server on PostgreSQL. SQL
statements then multiply its rows to 10,000 trials, 2,000 of them on the frontier.
"""

import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measure import Row
from search_spaces import get_space
from search_spaces.samplers import draw
from tests.tracking.helpers import FORMULA_TEXT, Search, tracking_environment
from tests.tracking.servers import NO_POSTGRES, mlflow_server, postgres_programs, postgres_server
from tinynet_search.mlflow_client.connection import preload
from tinynet_search.plan.candidates import candidate_of
from tinynet_search.tracking.search_runs import COMPLETE_TAG, SearchRuns

SEEDS, EPOCHS, TRIALS, FRONTIER = 40, 10, 10_000, 0.2
ROUNDS = 3
SPACE, NAME, ID = "efficientnet_mini", "scale", "0123456789abcdef"
RUN_TABLES = ("runs", "metrics", "latest_metrics", "params", "tags")

Execute = Callable[[str], Sequence[Any]]


def run() -> list[Row]:
    rows: list[Row] = []
    with tracking_environment(), tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        programs = postgres_programs()
        if programs is None:
            print(f"tracking_scale: {NO_POSTGRES}", file=sys.stderr)
        else:
            home = Path(folder) / "postgres"
            home.mkdir()
            database = stack.enter_context(postgres_server(programs))
            server = stack.enter_context(mlflow_server(home, database))
            rows += [*finished_costs(home, server), *live_costs(home, server)]
            with on_postgres(database) as execute:
                multiply(execute, TRIALS)
            rows += start_costs("PostgreSQL server", server, home)
    return rows


def searched(home: Path, name: str, trials: int) -> Search:
    """Create a search directory with ``trials`` candidates, none of them started."""
    search, space = (
        Search(home, name, trials=0, space=SPACE, epochs=EPOCHS, id=ID),
        get_space(SPACE),
    )
    search.candidates += [
        candidate_of(search.plan, network)
        for network in draw(space, "uniform", trials, 0, num_classes=10)
    ]
    return search


def publish_finished(home: Path, server: str, trials: int, name: str = NAME) -> None:
    """Publish a finished search in one pass; a fifth of its trials are on the frontier."""
    search = searched(home, name, trials)
    for candidate in search.candidates:
        search.end(candidate)
    publish(search, server)


def publish(search: Search, server: str) -> None:
    publisher = search.publisher(server)
    publisher.conclude(
        search.rows(search.candidates[: round(FRONTIER * len(search.candidates))]),
        FORMULA_TEXT,
        [],
    )
    publisher.sync_once()
    publisher.finish("FINISHED", int(time.time() * 1000))


def multiply(execute: Execute, trials: int, name: str = NAME) -> None:
    """Copy the trials of the search, with new ids and keys, until it has ``trials`` of them."""
    trial_runs = "select run_uuid from tags where key = 'tinynet.kind' and value = 'trial'"
    search_runs = f"select run_uuid from tags where key = 'tinynet.search' and value = '{name}'"
    execute(f"create temporary table seeds as {trial_runs} intersect {search_runs}")
    ((seeds,),) = execute("select count(*) from seeds")
    copies = trials // seeds - 1
    series = f"select 1 union all select n + 1 from n where n < {copies}"
    numbers = f"(with recursive n(n) as ({series}) select n from n) as n"
    for table in RUN_TABLES:
        columns: list[str] = [row[0] for row in execute(f"select * from columns_of('{table}')")]
        changed: dict[str, str] = {
            "run_uuid": "substr(run_uuid, 1, 26) || substr(cast(1000000 + n.n as varchar), 2)"
        }
        if table == "tags":
            changed["value"] = (
                "case when key = 'tinynet.key' then value || '-' || n.n else value end"
            )
        values = ", ".join(changed.get(column, column) for column in columns)
        is_seed = "run_uuid in (select run_uuid from seeds)"
        source = f"select {values} from {table}, {numbers} where {is_seed}"
        execute(f"insert into {table} ({', '.join(columns)}) {source}")


@contextmanager
def on_postgres(database: str) -> Iterator[Execute]:
    import psycopg

    with psycopg.connect(database, autocommit=True) as connection:

        def execute(text: str) -> Sequence[Any]:
            cursor = connection.execute(text.encode())
            return cursor.fetchall() if cursor.description else []

        columns = (
            "select column_name::text from information_schema.columns "
            "where table_name = $1 and table_schema = 'public'"
        )
        execute(
            "create function pg_temp.columns_of(text) returns setof text "
            f"language sql as $$ {columns} $$"
        )
        yield lambda text: execute(text.replace("columns_of", "pg_temp.columns_of"))
        execute("analyze")


@contextmanager
def on_sqlite(path: Path) -> Iterator[Execute]:
    """Leave out ANALYZE: MLflow does not run it on SQLite, so the database has no statistics."""
    with closing(sqlite3.connect(path, timeout=60)) as connection, connection:
        yield lambda text: connection.execute(
            text.replace("select * from columns_of", "select name from pragma_table_info")
        ).fetchall()


def finished_costs(home: Path, server: str) -> list[Row]:
    """CPU and HTTP calls of the publisher for a finished search; it runs in this thread."""
    preload(server)
    search = searched(home, NAME, SEEDS)
    for candidate in search.candidates:
        search.end(candidate)
    with count_requests() as calls:
        started = time.thread_time()
        publish(search, server)
        spent = time.thread_time() - started
    return costs(f"{EPOCHS} epochs at once", spent, calls[0], SEEDS)


def live_costs(home: Path, server: str) -> list[Row]:
    """CPU and HTTP calls of the publisher for trials that advance by one epoch per pass."""
    search = searched(home, "live", 8)
    publisher = search.publisher(server)
    publisher.sync_once()
    with count_requests() as calls:
        spent = 0.0
        for epoch in range(1, EPOCHS + 2):
            for candidate in search.candidates:
                if epoch <= EPOCHS:
                    search.commit(candidate, epoch)
                else:
                    search.end(candidate)
            started = time.thread_time()
            publisher.sync_once()
            spent += time.thread_time() - started
    return costs("one epoch per pass", spent, calls[0], len(search.candidates))


def costs(case: str, spent: float, calls: int, trials: int) -> list[Row]:
    return [
        Row(f"publisher, {case}: CPU per trial", 1e3 * spent / trials, "ms", 50.0),
        Row(f"publisher, {case}: HTTP calls per trial", calls / trials, ""),
    ]


@contextmanager
def count_requests() -> Iterator[list[int]]:
    """Count the HTTP requests inside the context, in the first element of the yielded list."""
    import requests

    calls, send = [0], requests.Session.send

    def counting(self: requests.Session, *arguments: Any, **options: Any) -> requests.Response:
        calls[0] += 1
        return send(self, *arguments, **options)

    requests.Session.send = counting
    try:
        yield calls
    finally:
        requests.Session.send = send


def start_costs(name: str, server: str, home: Path) -> list[Row]:
    """Time of a publisher's start on a search.

    The publisher lists all runs or, if the search has not changed, only the unfinished ones.
    """
    plan = Search(home / "again", NAME, trials=0, space=SPACE, epochs=EPOCHS, id=ID).plan
    digest = ["no such digest"]
    cpu, wall = time.thread_time(), time.perf_counter()
    runs = SearchRuns(server, plan, "again", lambda: (set(), digest[0]))
    cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
    assert len(runs.children) == TRIALS
    digest[0] = runs.tags[COMPLETE_TAG]
    started = time.perf_counter()
    assert not SearchRuns(server, plan, "again", lambda: (set(), digest[0])).listed
    unchanged = time.perf_counter() - started
    start = f"publisher started on {TRIALS:,} trials, {name}"
    return [
        Row(f"{start}: all runs are read", wall, "s"),
        Row(f"{start}: all runs are read, CPU", cpu, "s"),
        Row(f"{start}: nothing has changed", unchanged, "s"),
    ]
