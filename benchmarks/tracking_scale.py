"""The publisher's cost a trial over HTTP, and its start on an MLflow server with 10,000 trials.

A search of 40 trials is published by the publisher to a real server on PostgreSQL, then its rows are multiplied by SQL
to 10,000 trials, 2,000 of them on the frontier.
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
from tests.tracking.helpers import FORMULA_TEXT, Search, calm
from tests.tracking.servers import NO_POSTGRES, mlflow_server, postgres_programs, postgres_server
from tinynet_search.mlflow_client.connection import preload
from tinynet_search.plan.candidates import candidate_of
from tinynet_search.tracking.search_runs import SEAL, SearchRuns

SEEDS, EPOCHS, TRIALS, FRONTIER = 40, 10, 10_000, 0.2
ROUNDS = 3
SPACE, NAME = "efficientnet_mini", "scale"
OF_A_RUN = ("runs", "metrics", "latest_metrics", "params", "tags")

Execute = Callable[[str], Sequence[Any]]


def run() -> list[Row]:
    rows: list[Row] = []
    with calm(), tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        programs = postgres_programs()
        if programs is None:
            print(f"tracking_scale: {NO_POSTGRES}", file=sys.stderr)
        else:
            home = Path(folder) / "postgres"
            home.mkdir()
            database = stack.enter_context(postgres_server(programs))
            server = stack.enter_context(mlflow_server(home, database))
            rows += [*published(home, server), *live(home, server)]
            with on_postgres(database) as execute:
                multiply(execute, TRIALS)
            rows += listed("PostgreSQL server", server, home)
    return rows


def searched(home: Path, name: str, trials: int) -> Search:
    """A search directory with candidates of its own, none of them begun."""
    search, space = Search(home, name, twists=0, space=SPACE, epochs=EPOCHS), get_space(SPACE)
    search.candidates += [
        candidate_of(search.plan, network)
        for network in draw(space, "uniform", trials, 0, num_classes=10)
    ]
    return search


def filled(home: Path, server: str, trials: int, name: str = NAME) -> None:
    """A finished search, published in one go; a fifth of its trials are on the frontier."""
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
    """Copy the trials of the search, under new ids and keys, until there are so many."""
    mine = "select run_uuid from tags where key = 'tinynet.kind' and value = 'trial'"
    execute(
        f"create temporary table seeds as {mine} intersect select run_uuid from tags where key = 'tinynet.search' and value = '{name}'"
    )
    ((seeds,),) = execute("select count(*) from seeds")
    numbers = f"(with recursive n(n) as (select 1 union all select n + 1 from n where n < {trials // seeds - 1}) select n from n) as n"
    for table in OF_A_RUN:
        columns: list[str] = [row[0] for row in execute(f"select * from columns_of('{table}')")]
        changed: dict[str, str] = {
            "run_uuid": "substr(run_uuid, 1, 26) || substr(cast(1000000 + n.n as varchar), 2)"
        }
        if table == "tags":
            changed["value"] = (
                "case when key = 'tinynet.key' then value || '-' || n.n else value end"
            )
        values = ", ".join(changed.get(column, column) for column in columns)
        source = f"select {values} from {table}, {numbers} where run_uuid in (select run_uuid from seeds)"
        execute(f"insert into {table} ({', '.join(columns)}) {source}")


@contextmanager
def on_postgres(database: str) -> Iterator[Execute]:
    import psycopg

    with psycopg.connect(database, autocommit=True) as connection:

        def execute(text: str) -> Sequence[Any]:
            done = connection.execute(text.encode())
            return done.fetchall() if done.description else []

        listing = "select column_name::text from information_schema.columns where table_name = $1 and table_schema = 'public'"
        execute(
            f"create function pg_temp.columns_of(text) returns setof text language sql as $$ {listing} $$"
        )
        yield lambda text: execute(text.replace("columns_of", "pg_temp.columns_of"))
        execute("analyze")


@contextmanager
def on_sqlite(path: Path) -> Iterator[Execute]:
    """As MLflow leaves it: without the statistics that ANALYZE would make."""
    with closing(sqlite3.connect(path, timeout=60)) as connection, connection:
        yield lambda text: connection.execute(
            text.replace("select * from columns_of", "select name from pragma_table_info")
        ).fetchall()


def published(home: Path, server: str) -> list[Row]:
    """A finished search: CPU and calls of the publisher, alone in this thread."""
    preload(server)
    search = searched(home, NAME, SEEDS)
    for candidate in search.candidates:
        search.end(candidate)
    with counted() as calls:
        started = time.thread_time()
        publish(search, server)
        spent = time.thread_time() - started
    return costs(f"{EPOCHS} epochs at once", spent, calls[0], SEEDS)


def live(home: Path, server: str) -> list[Row]:
    """Trials that go on by one epoch from pass to pass."""
    search = searched(home, "live", 8)
    publisher = search.publisher(server)
    publisher.sync_once()
    with counted() as calls:
        spent = 0.0
        for epoch in range(1, EPOCHS + 2):
            for candidate in search.candidates:
                _ = search.commit(candidate, epoch) if epoch <= EPOCHS else search.end(candidate)
            started = time.thread_time()
            publisher.sync_once()
            spent += time.thread_time() - started
    return costs("an epoch a pass", spent, calls[0], len(search.candidates))


def costs(how: str, spent: float, calls: int, trials: int) -> list[Row]:
    return [
        Row(f"publisher, {how}: CPU a trial", 1e3 * spent / trials, "ms", 50.0),
        Row(f"publisher, {how}: HTTP calls a trial", calls / trials, ""),
    ]


@contextmanager
def counted() -> Iterator[list[int]]:
    """The number of HTTP requests meanwhile."""
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


def listed(name: str, server: str, home: Path) -> list[Row]:
    """What a publisher asks when it is started on a search: all that is there, or, where nothing has changed, only what runs."""
    plan, seal = (
        Search(home / "again", NAME, twists=0, space=SPACE, epochs=EPOCHS).plan,
        ["no such digest"],
    )
    started = time.thread_time(), time.perf_counter()
    runs = SearchRuns(server, plan, lambda: (set(), seal[0]))
    spent = time.thread_time() - started[0], time.perf_counter() - started[1]
    assert len(runs.children) == TRIALS
    seal[0] = runs.tags[SEAL]
    started = time.perf_counter()
    assert not SearchRuns(server, plan, lambda: (set(), seal[0])).listed
    return [
        Row(f"publisher started on {TRIALS:,} trials, {name}: all are looked at", spent[1], "s"),
        Row(
            f"publisher started on {TRIALS:,} trials, {name}: all are looked at, CPU", spent[0], "s"
        ),
        Row(
            f"publisher started on {TRIALS:,} trials, {name}: nothing has changed",
            time.perf_counter() - started,
            "s",
        ),
    ]
