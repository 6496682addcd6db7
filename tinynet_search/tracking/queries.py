"""Queries of the frontier and of trials in MLflow: ``frontier_models`` and what ``tinynet frontier`` prints."""

import re
import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from search_spaces.errors import RequestError
from tinynet_search.errors import one_line
from tinynet_search.mlflow_client.connection import address, database_file, reaching, resolve_uri
from tinynet_search.mlflow_client.reading import Found, RunReader, read
from tinynet_search.tracking.projection import (
    FRONTIER_TAG,
    ID,
    KEY,
    KIND,
    PARENT,
    RANK_TAG,
    SEARCH,
    experiment_name,
)

if TYPE_CHECKING:
    import pandas

# Metrics that are columns.
INTS = ("resolution", "macs", "params", "activation_bytes")
FLOATS = ("r", "d", "w", "c", "top1", "top1_raw", "top1_ema")
# Of a figure: beyond it floats skip whole numbers.
LARGEST = 2.0**53


@dataclass(frozen=True)
class ModelRow:
    """One trial's model as MLflow has it; the fields are the columns of ``frontier_models``.

    None is a figure or a tag that the run does not have.
    """

    search: str | None
    id: str | None
    run_id: str
    r: float
    d: float
    w: float
    resolution: int
    c: float
    macs: int
    params: int
    activation_bytes: int | None
    top1: float | None
    top1_raw: float | None
    top1_ema: float | None
    frontier: bool
    pareto_rank: int | None
    status: str
    name: str


def frontier_models(
    search: str | None = None,
    *,
    space: str | None = None,
    tracking_uri: str | None = None,
    storage: str = "searches",
    all_trials: bool = False,
) -> "pandas.DataFrame":
    """A search's frontier, read from MLflow: one row a model by rising c.

    Columns: search, id, run_id, r, d, w, resolution (pixels), c (of the baseline's FLOPs), macs (multiply-adds),
    params, activation_bytes (peak at batch 1, float32), top1, top1_raw, top1_ema (percent, of the last epoch there is),
    frontier, pareto_rank (1 is the nondominated front), status and name (MLflow's).

    Args:
        search: its name; of several under one name the newest. None is the newest search there is.
        space: look among the searches of this space only.
        tracking_uri: where MLflow is; None is MLFLOW_TRACKING_URI, else the database in ``storage``.
        storage: folder that holds searches.
        all_trials: every trial that has started, not the frontier alone.

    Raises:
        RequestError: there is no such search.
        TrackingError: MLflow does not answer.
    """
    import pandas as pd

    rows = trial_rows(
        search, space=space, tracking_uri=tracking_uri, storage=storage, all_trials=all_trials
    )
    kinds = dict.fromkeys(INTS, "int64") | dict.fromkeys(FLOATS, "float64") | {"frontier": "bool"}
    # Not every trial has a rank, nor every older one a memory.
    kinds |= dict.fromkeys(("pareto_rank", "activation_bytes"), "Int64")
    columns = [column.name for column in fields(ModelRow)]
    return pd.DataFrame([asdict(row) for row in rows], columns=columns).astype(kinds)


def trial_rows(
    search: str | None = None,
    *,
    space: str | None = None,
    tracking_uri: str | None = None,
    storage: str = "searches",
    all_trials: bool = False,
) -> list[ModelRow]:
    """The rows of ``frontier_models``."""
    uri = resolve_uri(tracking_uri, None, storage)
    with reaching(uri):
        _require_database(uri)
        runs = read(uri, partial(_trials, uri=uri, search=search, space=space, every=all_trials))
    rows = [row for run in runs if (row := model_row(run))]
    return sorted(rows, key=lambda row: (row.c, str(row.id)))


def _trials(
    reader: RunReader, uri: str, search: str | None, space: str | None, every: bool
) -> list[Found]:
    parent = _find_search(reader, uri, search, space)
    wanted = f"tags.`{PARENT}` = '{parent.run_id}' and tags.`{KIND}` = 'trial'"
    return reader.runs(
        [parent.experiment_id], wanted if every else f"{wanted} and tags.{FRONTIER_TAG} = 'true'"
    )


def _find_search(reader: RunReader, uri: str, search: str | None, space: str | None) -> Found:
    """A search's parent run: the newest of the name (or key), or the newest of all."""
    ids = [
        number
        for number, name in reader.experiments()
        if space is None or name == experiment_name(space)
    ]
    parents = reader.runs(ids, f"tags.`{KIND}` = 'search'") if ids else []
    where = f"{address(uri)}{f' of space {space}' if space else ''}"
    if not parents:
        raise RequestError(f"no searches at {where}: run tinynet search first")
    for run in parents:
        if search in (None, run.tags.get(SEARCH), run.tags.get(KEY)):
            return run
    names = sorted({one_line(run.tags.get(SEARCH, ""), 64) for run in parents})
    raise RequestError(f"no search {search!r} at {where}: there are {', '.join(names)}")


def model_row(run: Found) -> ModelRow | None:
    """A run as a row; None where the network's figures are missing.

    Then the run was created a moment ago and they are on their way, or it is not one of ours.
    """
    r, d, w, c = (_number(run, name) for name in ("r", "d", "w", "c"))
    resolution, macs, params = (_whole(run, name) for name in ("resolution", "macs", "params"))
    if r is None or d is None or w is None or c is None:
        return None
    if resolution is None or macs is None or params is None:
        return None
    rank = run.tags.get(RANK_TAG, "")
    return ModelRow(
        search=_text(run, SEARCH),
        id=_text(run, ID),
        run_id=one_line(run.run_id),
        r=r,
        d=d,
        w=w,
        resolution=resolution,
        c=c,
        macs=macs,
        params=params,
        activation_bytes=_whole(run, "activation_bytes"),
        top1=_number(run, "top1"),
        top1_raw=_number(run, "top1_raw"),
        top1_ema=_number(run, "top1_ema"),
        frontier=run.tags.get(FRONTIER_TAG) == "true",
        pareto_rank=int(rank) if re.fullmatch(r"[1-9]\d{0,8}", rank, re.ASCII) else None,
        status=one_line(run.status),
        name=one_line(run.name),
    )


def _text(run: Found, tag: str) -> str | None:
    value = run.tags.get(tag)
    return None if value is None else one_line(value)


def _whole(run: Found, name: str) -> int | None:
    value = _number(run, name)
    return None if value is None else int(value)


def _number(run: Found, name: str) -> float | None:
    """A metric that can be shown and counted; anybody with the server's address may have written another."""
    value = run.metrics.get(name)
    return value if value is not None and abs(value) < LARGEST else None


def _require_database(uri: str) -> None:
    """Opening a database that is not there would make an empty one."""
    path = database_file(uri)
    if path is None:
        return
    if path.is_file():
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as database:
            if database.execute(
                "select 1 from sqlite_master where name = 'experiments'"
            ).fetchone():
                return
    raise RequestError(f"no searches at {address(uri)}: run tinynet search first")
