"""The frontier's models as one file of the search's run, ``models.json``: what is read where a search was published whole.

A server takes seconds to put two thousand runs together; a file it hands over as it is. The parent's tag tells which
conclusion the file belongs to and its digest; where either does not fit, the runs themselves are asked. A run that
somebody deletes later stays in it until the search is published anew.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tinynet_search.mlflow_client.reading import Found
from tinynet_search.store.directory import Candidate
from tinynet_search.tracking.projection import STATUS, epoch_points, figure_points, trial_name
from tinynet_search.tracking.registered_models import content_digest
from tinynet_search.tracking.search_runs import MARKED, SEAL, SearchRuns
from trainables.storage.documents import parsed

TABLE, TABLED = "models.json", "tinynet.models"
# Metrics that are columns.
INTS, FLOATS = (
    ("resolution", "macs", "params", "activation_bytes"),
    ("r", "d", "w", "c", "top1", "top1_raw", "top1_ema"),
)


def model_of(
    candidate: Candidate,
    result: Mapping[str, Any],
    run_id: str,
    experiment_id: str,
    tags: Mapping[str, str],
) -> Found:
    """A trial as a query of its run would find it."""
    last = {
        point.key: point.value
        for point in (*figure_points(candidate, 0), *epoch_points(result["epochs"]))
    }
    shown = {name: last[name] for name in (*INTS, *FLOATS) if name in last}
    return Found(
        run_id, trial_name(candidate), STATUS[result["status"]], experiment_id, shown, tags
    )


def document(seal: Mapping[str, str], models: Iterable[Found]) -> tuple[str, str]:
    """The file, and the tag that tells of which sealed results and marks it is."""
    text = json.dumps([model._asdict() for model in models])
    return text, f"{_of(seal)} {content_digest(text)}"


def write_table(runs: SearchRuns, seal: Mapping[str, str], models: Iterable[Found]) -> None:
    text, tag = document(seal, models)
    if runs.tags.get(TABLED) != tag:
        runs.client.log_text(runs.parent_id, text, TABLE)
        runs.tell({TABLED: tag})


def is_tabled(tags: Mapping[str, str]) -> bool:
    """Whether a parent of these tags has the table of what it is sealed with."""
    return bool(tags.get(SEAL) and tags.get(MARKED)) and tags.get(TABLED, "").rpartition(" ")[
        0
    ] == _of(tags)


def _of(seal: Mapping[str, str]) -> str:
    return f"{seal[SEAL]} {seal[MARKED]}"


def tabled(text: str | None, tags: Mapping[str, str]) -> list[Found] | None:
    """The models, None where the file is not the one that was written."""
    if text is None or tags.get(TABLED, "").rpartition(" ")[2] != content_digest(text):
        return None
    try:
        rows = parsed(text)
        return [_found(row) for row in rows] if isinstance(rows, list) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _found(row: Mapping[str, Any]) -> Found:
    metrics = {str(key): float(value) for key, value in row["metrics"].items()}
    tags = {str(key): str(value) for key, value in row["tags"].items()}
    return Found(
        str(row["run_id"]),
        str(row["name"]),
        str(row["status"]),
        str(row["experiment_id"]),
        metrics,
        tags,
    )
