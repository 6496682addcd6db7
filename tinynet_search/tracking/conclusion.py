"""Writes the conclusion of a search to MLflow.

The conclusion consists of frontier tags, labels, metrics of the search, artifacts, and the formula
as a registered model. Called by ``Publisher``.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinynet_search.store.schema import FinalRow, FrontierRow
from tinynet_search.tracking.projection import FRONTIER_TAG, LABEL_TAG, RANK_TAG
from tinynet_search.tracking.registered_formula import Registration, register_formula
from tinynet_search.tracking.registered_models import (
    CLASS_NAMES_FILE,
    DIGEST,
    class_names_text,
    content_digest,
)
from tinynet_search.tracking.search_metrics import SearchMetrics
from tinynet_search.tracking.search_runs import TAGS_DIGEST_TAG, SearchRuns, run_of

CSV_COLUMNS = ["id", "r", "d", "w", "resolution", "c", "macs", "params", "top1", "pareto_rank"]


@dataclass(frozen=True)
class Conclusion:
    """The conclusion of a search.

    Attributes:
        frontier: rows of frontier.json, None if not known yet.
        formula_json: content of formula.json, None if not known yet.
        finals: rows of finals.json.
        metrics: figures of the search, None if not known yet.
    """

    frontier: Sequence[FrontierRow] | None
    formula_json: str | None
    finals: Sequence[FinalRow]
    metrics: SearchMetrics | None = None


def write_conclusion(
    runs: SearchRuns, conclusion: Conclusion, registration: Registration
) -> str | None:
    """Update MLflow to a conclusion; only differences are sent.

    The tags of runs are skipped if ``runs`` are not listed, since they are up to date then.

    Returns:
        The version of the formula that was registered or promoted, None if there is none.
    """
    if runs.listed:
        _update_tags(runs, conclusion)
    if conclusion.metrics is not None:
        _write_metrics(runs, conclusion.metrics)
    _write_artifacts(runs, conclusion)
    if conclusion.formula_json is not None and json.loads(conclusion.formula_json).get("usable"):
        return register_formula(runs, conclusion.formula_json, registration)
    return None


def tags_digest(conclusion: Conclusion) -> str:
    """Return a digest of the tags that a conclusion sets on trials and finals."""
    return content_digest(json.dumps([_ranks(conclusion), _labels(conclusion)], sort_keys=True))


def _ranks(conclusion: Conclusion) -> Mapping[str, int] | None:
    if conclusion.frontier is None:
        return None
    return {row.run: row.pareto_rank for row in conclusion.frontier}


def _labels(conclusion: Conclusion) -> dict[str, str]:
    return {row.run: row.label for row in conclusion.finals}


def _update_tags(runs: SearchRuns, conclusion: Conclusion) -> None:
    """Update the tags of runs.

    ``frontier`` and ``pareto_rank`` are set on models of the frontier, ``frontier`` is set to
    false on models that are no longer on it, and ``label`` is set on finals. All other trials
    have had ``frontier`` set to false when they ended.
    """
    ranks, labels = _ranks(conclusion), _labels(conclusion)
    for key, child in runs.children.items():
        run, tags = run_of(key), {}
        if run in labels:
            tags[LABEL_TAG] = labels[run]
        if ranks is not None and run in ranks:
            tags |= {FRONTIER_TAG: "true", RANK_TAG: str(ranks[run])}
        elif ranks is not None and child.tags.get(FRONTIER_TAG) == "true":
            tags[FRONTIER_TAG] = "false"
        changed = {tag: value for tag, value in tags.items() if child.tags.get(tag) != value}
        stale = ranks is not None and run not in ranks and RANK_TAG in child.tags
        if (changed or stale) and runs.tags.get(TAGS_DIGEST_TAG):
            runs.clear_complete()  # its digest of the tags is no longer valid
        if changed:
            runs.log(child, tags=changed)
        if stale:
            runs.delete_tag(child, RANK_TAG)


def _write_metrics(runs: SearchRuns, metrics: SearchMetrics) -> None:
    """Log the figures of the search to its parent run, except those that are there already."""
    known = runs.parent.data.metrics
    points = [point for point in metrics.points() if known.get(point.key) != point.value]
    if points:
        runs.log_run(runs.parent_id, points)


def _write_artifacts(runs: SearchRuns, conclusion: Conclusion) -> None:
    """Write files to the parent run; a tag with the digest of the content shows which exist."""
    texts = {
        "formula.json": conclusion.formula_json,
        CLASS_NAMES_FILE: class_names_text(runs.plan.data.class_names),
    }
    if conclusion.frontier is not None:
        texts |= {
            "frontier.json": json.dumps([row.to_json() for row in conclusion.frontier], indent=1)
            + "\n",
            "frontier.csv": _csv(conclusion.frontier),
        }
    for name, text in texts.items():
        if text is not None and runs.tags.get(f"{DIGEST}.{name}") != content_digest(text):
            runs.client.log_text(runs.parent_id, text, name)
            runs.set_parent_tags({f"{DIGEST}.{name}": content_digest(text)})


def _csv(frontier: Sequence[FrontierRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in frontier:
        figures = {**row.to_json(), **dict(zip("rdw", row.rdw, strict=True))}
        writer.writerow([figures.get(column) for column in CSV_COLUMNS])
    return text.getvalue()
