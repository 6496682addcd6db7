"""Reads the frontier and the trials of a search from MLflow.

Provides ``frontier_models`` and the rows that ``tinynet frontier`` prints.
"""

import os
import re
import sqlite3
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from search_spaces.errors import RequestError
from tinynet_search.errors import one_line
from tinynet_search.mlflow_client.connection import (
    address,
    database_file,
    mlflow_access,
    resolve_uri,
)
from tinynet_search.mlflow_client.reading import RunReader, RunRecord, read
from tinynet_search.tracking.projection import (
    FRONTIER_TAG,
    ID,
    KIND,
    OWNER,
    PARENT,
    RANK_TAG,
    SEARCH,
)
from tinynet_search.tracking.selection import (
    DEFAULT_STORAGE,
    Selection,
    find_search,
    keys_in_database_folder,
    keys_in_storage,
    storage_and_search,
)

if TYPE_CHECKING:
    import pandas

# Metrics that become columns.
INTS = ("resolution", "macs", "params", "activation_bytes")
FLOATS = ("r", "d", "w", "c", "top1", "top1_raw", "top1_ema")
# Limit of a metric's absolute value: larger floats cannot represent every integer.
MAX_EXACT_FLOAT = 2.0**53


@dataclass(frozen=True)
class ModelRow:
    """The model of one trial in MLflow; the fields are the columns of ``frontier_models``.

    A figure or tag that the run does not have is None.
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


@dataclass(frozen=True)
class SearchModels:
    """The models of one search in MLflow.

    Attributes:
        search: name of the search.
        owner: owner of the search.
        status: MLflow's status of the search.
        rows: one row per model, sorted by c.
    """

    search: str
    owner: str
    status: str
    rows: list[ModelRow]


def frontier_models(
    search: str | None = None,
    *,
    space: str | None = None,
    owner: str | None = None,
    tracking_uri: str | None = None,
    storage: str | None = None,
    all_trials: bool = False,
) -> "pandas.DataFrame":
    """Read the frontier of a search from MLflow: one row per model, sorted by c.

    Columns: search, id, run_id, r, d, w, resolution (pixels), c (FLOPs relative to the baseline),
    macs (multiply-adds), params, activation_bytes (peak at batch 1, float32), top1, top1_raw,
    top1_ema (percent, of the last epoch so far), frontier, pareto_rank (1 is the nondominated
    front), status and name (MLflow's).

    Args:
        search: name of the search, name of its directory in ``storage``, or its key (the tag
            ``tinynet.key``). None selects the newest search.
        space: consider only searches of this space.
        owner: consider only searches of this owner.
        tracking_uri: MLflow's tracking URI; None selects MLFLOW_TRACKING_URI, or else the database
            in ``storage``.
        storage: consider only searches whose directory is in this folder or under this URL, or
            only the search in this directory. None considers all searches of a tracking URI that is
            given or set; without one, it selects the folder ``searches``.
        all_trials: return every trial that has started, not only the frontier.

    Raises:
        RequestError: there is no such search, or searches of several owners or storage folders
            match.
        TrackingError: MLflow does not respond, or rejects the account.
    """
    models = search_models(
        search,
        space=space,
        owner=owner,
        tracking_uri=tracking_uri,
        storage=storage,
        all_trials=all_trials,
    )
    return rows_as_table(models.rows)


def rows_as_table(rows: Sequence[ModelRow]) -> "pandas.DataFrame":
    """Return rows as the table of ``frontier_models``."""
    import pandas as pd

    kinds = dict.fromkeys(INTS, "int64") | dict.fromkeys(FLOATS, "float64") | {"frontier": "bool"}
    # Trials off the frontier have no rank, and older trials have no activation_bytes.
    kinds |= dict.fromkeys(("pareto_rank", "activation_bytes"), "Int64")
    columns = [column.name for column in fields(ModelRow)]
    return pd.DataFrame([asdict(row) for row in rows], columns=columns).astype(kinds)


def search_models(
    search: str | None = None,
    *,
    space: str | None = None,
    owner: str | None = None,
    tracking_uri: str | None = None,
    storage: str | None = None,
    all_trials: bool = False,
) -> SearchModels:
    """Return the rows of ``frontier_models`` with the search that they belong to."""
    if storage:
        storage, search = storage_and_search(storage, search)
    uri = resolve_uri(tracking_uri, None, storage or DEFAULT_STORAGE)
    selection = Selection(uri, search, space, owner, storage)
    if not (tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")):
        keys = keys_in_database_folder(selection, storage or DEFAULT_STORAGE)
    else:
        keys = keys_in_storage(selection, storage) if storage else None
    with mlflow_access(uri):
        _require_database(uri)
        parent, runs = read(uri, partial(_trials, selection, keys, all_trials))
    rows = [row for run in runs if (row := model_row(run))]
    return SearchModels(
        search=_text(parent, SEARCH) or "",
        owner=_text(parent, OWNER) or "unknown",
        status=one_line(parent.status),
        rows=sorted(rows, key=lambda row: (row.c, str(row.id))),
    )


def _trials(
    selection: Selection, keys: Collection[str] | None, all_trials: bool, reader: RunReader
) -> tuple[RunRecord, list[RunRecord]]:
    """Return the parent run of the selected search and the runs of its models."""
    parent = find_search(reader, selection, keys)
    query = f"tags.`{PARENT}` = '{parent.run_id}' and tags.`{KIND}` = 'trial'"
    if not all_trials:
        query += f" and tags.{FRONTIER_TAG} = 'true'"
    return parent, reader.runs([parent.experiment_id], query)


def model_row(run: RunRecord) -> ModelRow | None:
    """Return a run as a row, None if the figures of the network are missing.

    They are missing if the run has just been created, or if another program created it.
    """
    r, d, w, c = (_number(run, name) for name in ("r", "d", "w", "c"))
    resolution, macs, params = (_integer(run, name) for name in ("resolution", "macs", "params"))
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
        activation_bytes=_integer(run, "activation_bytes"),
        top1=_number(run, "top1"),
        top1_raw=_number(run, "top1_raw"),
        top1_ema=_number(run, "top1_ema"),
        frontier=run.tags.get(FRONTIER_TAG) == "true",
        pareto_rank=int(rank) if re.fullmatch(r"[1-9]\d{0,8}", rank, re.ASCII) else None,
        status=one_line(run.status),
        name=one_line(run.name),
    )


def _text(run: RunRecord, tag: str) -> str | None:
    value = run.tags.get(tag)
    return None if value is None else one_line(value)


def _integer(run: RunRecord, name: str) -> int | None:
    value = _number(run, name)
    return None if value is None else int(value)


def _number(run: RunRecord, name: str) -> float | None:
    """Return a finite metric below the limit; any client of the server may have written others."""
    value = run.metrics.get(name)
    return value if value is not None and abs(value) < MAX_EXACT_FLOAT else None


def _require_database(uri: str) -> None:
    """Raise RequestError if the database does not exist; opening it would create an empty one."""
    path = database_file(uri)
    if path is None:
        return
    if path.is_file():
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as database:
            if database.execute(
                "select 1 from sqlite_master where name = 'experiments'"
            ).fetchone():
                return
    raise RequestError(
        f"no searches at {address(uri)}: run tinynet search first, or pass --storage or --tracking"
    )
