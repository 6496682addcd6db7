"""The frontier's models as one file of the search's run, ``models.json``: what is read where a search was published whole.

A server takes seconds to put two thousand runs together; a file it hands over as it is. The parent's tag tells which
conclusion the file belongs to and its digest; where either does not fit, the runs themselves are asked.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tinynet_search.store import Candidate
from tinynet_search.tracking.models import digest_of
from tinynet_search.tracking.projection import STATUS, epoch_points, figure_points, trial_name
from tinynet_search.tracking.reading import Found
from tinynet_search.tracking.searches import MARKED, SEAL, SearchRuns
from trainables.documents import parsed

TABLE, TABLED = "models.json", "tinynet.models"
# Metrics that are columns.
INTS, FLOATS = ("resolution", "macs", "params", "activation_bytes"), ("r", "d", "w", "c", "top1", "top1_raw", "top1_ema")


def model_of(candidate: Candidate, result: Mapping[str, Any], run_id: str, experiment_id: str, tags: Mapping[str, str]) -> Found:
    """A trial as a query of its run would find it."""
    last = {point.key: point.value for point in (*figure_points(candidate, 0), *epoch_points(result["epochs"]))}
    shown = {name: last[name] for name in (*INTS, *FLOATS) if name in last}
    return Found(run_id, trial_name(candidate), STATUS[result["status"]], experiment_id, shown, tags)


def document(marks: str, models: Iterable[Found]) -> tuple[str, str]:
    """The file, and the tag that tells that it is of the conclusion of these ``marks``."""
    text = json.dumps([model._asdict() for model in models])
    return text, f"{marks} {digest_of(text)}"


def write_table(runs: SearchRuns, marks: str, models: Iterable[Found]) -> None:
    text, tag = document(marks, models)
    if runs.tags.get(TABLED) != tag:
        runs.client.log_text(runs.parent_id, text, TABLE)
        runs.tell({TABLED: tag})


def is_tabled(tags: Mapping[str, str]) -> bool:
    """Whether a parent of these tags has the table of what it was sealed with."""
    return bool(tags.get(SEAL)) and bool(tags.get(MARKED)) and tags.get(TABLED, "").split(" ")[0] == tags[MARKED]


def tabled(text: str | None, tags: Mapping[str, str]) -> list[Found] | None:
    """The models, None where the file is not the one that was written."""
    if text is None or tags.get(TABLED, "").split(" ")[-1] != digest_of(text):
        return None
    try:
        rows = parsed(text)
        return [_found(row) for row in rows] if isinstance(rows, list) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _found(row: Mapping[str, Any]) -> Found:
    metrics = {str(key): float(value) for key, value in row["metrics"].items()}
    tags = {str(key): str(value) for key, value in row["tags"].items()}
    return Found(str(row["run_id"]), str(row["name"]), str(row["status"]), str(row["experiment_id"]), metrics, tags)
