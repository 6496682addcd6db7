"""Writes the conclusion of a search to MLflow.

The conclusion consists of frontier tags, labels, artifacts, and the formula as a registered model.
Called by ``Publisher``.
"""

import csv
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tinynet_search.mlflow_client.connection import is_served
from tinynet_search.store.schema import FinalRow, FrontierRow
from tinynet_search.tracking.projection import FRONTIER_TAG, KEY, LABEL_TAG, RANK_TAG, SEARCH
from tinynet_search.tracking.registered_models import (
    CHAMPION,
    DIGEST,
    REGISTERED,
    allowed_alias,
    content_digest,
    deduplicated_version,
    ensure_model,
)
from tinynet_search.tracking.search_runs import TAGS_DIGEST_TAG, SearchRuns, run_of

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

MODEL = "tiny-formula"
CSV_COLUMNS = ["id", "r", "d", "w", "resolution", "c", "macs", "params", "top1", "pareto_rank"]


@dataclass(frozen=True)
class Conclusion:
    """The conclusion of a search.

    Attributes:
        frontier: rows of frontier.json, None if not known yet.
        formula_json: content of formula.json, None if not known yet.
        finals: rows of finals.json.
    """

    frontier: Sequence[FrontierRow] | None
    formula_json: str | None
    finals: Sequence[FinalRow]


def write_conclusion(runs: SearchRuns, conclusion: Conclusion) -> None:
    """Update MLflow to a conclusion; only differences are sent.

    The tags of runs are skipped if ``runs`` are not listed, since they are up to date then.
    """
    if runs.listed:
        _update_tags(runs, conclusion)
    _write_artifacts(runs, conclusion)
    if conclusion.formula_json is not None and json.loads(conclusion.formula_json).get("usable"):
        _register(runs, conclusion.formula_json)


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


def _write_artifacts(runs: SearchRuns, conclusion: Conclusion) -> None:
    """Write files to the parent run; a tag with the digest of the content shows which exist."""
    texts = {"formula.json": conclusion.formula_json}
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


def _register(runs: SearchRuns, formula: str) -> None:
    """Register the formula as the newest version of one model: a JSON file without code.

    Aliases are moved only if the formula is new.
    """
    digest = content_digest(formula)
    if runs.tags.get(REGISTERED) == digest:
        return
    tags = {KEY: runs.key, SEARCH: runs.plan.search, DIGEST: digest}
    ensure_model(runs.client, MODEL, "r(c) and d(c) of the tiny formula: formula.json")
    version = deduplicated_version(runs.client, MODEL, runs.key, digest) or _new_version(
        runs, formula, tags
    )
    for alias in {CHAMPION, runs.plan.search}:
        if allowed_alias(alias):
            runs.client.set_registered_model_alias(MODEL, alias, version)
    runs.set_parent_tags({REGISTERED: digest})


def _new_version(runs: SearchRuns, formula: str, tags: dict[str, str]) -> str:
    client, model = runs.client, _logged_model(runs, tags)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "formula.json").write_text(formula, encoding="utf-8")
        client.log_model_artifacts(model.model_id, folder)
    client.finalize_logged_model(model.model_id, "READY")
    # Without a server, MLflow would resolve models:/ with its global URI, which is not this one.
    source = f"models:/{model.model_id}" if is_served(runs.uri) else model.artifact_location
    client.create_model_version(
        MODEL,
        source,
        run_id=runs.parent_id,
        tags=tags,
        model_id=model.model_id,
        await_creation_for=0,
    )
    version = deduplicated_version(client, MODEL, runs.key, tags[DIGEST])
    assert version is not None
    return version


def _logged_model(runs: SearchRuns, tags: dict[str, str]) -> "LoggedModel":
    """Return the logged model of the formula, created if it does not exist.

    Lost responses may have left duplicates: all but one are deleted.
    """
    client = runs.client
    query = f"tags.`{KEY}` = '{tags[KEY]}' and tags.`{DIGEST}` = '{tags[DIGEST]}'"
    models = client.search_logged_models([runs.experiment_id], query)
    if not models:
        client.create_logged_model(
            runs.experiment_id, MODEL, source_run_id=runs.parent_id, tags=tags, model_type=MODEL
        )
        models = client.search_logged_models([runs.experiment_id], query)
    kept, *duplicates = sorted(models, key=lambda model: model.model_id)
    for model in duplicates:
        client.delete_logged_model(model.model_id)
    return kept
