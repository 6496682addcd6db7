"""What follows from a search's results, in MLflow: frontier tags, labels, artifacts, and the formula as a registered model."""

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
    ensure_model,
    only_version,
)
from tinynet_search.tracking.search_runs import MARKED, SearchRuns, run_of

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

MODEL = "tiny-formula"
CSV_COLUMNS = ["id", "r", "d", "w", "resolution", "c", "macs", "params", "top1", "pareto_rank"]


@dataclass(frozen=True)
class Conclusion:
    """Rows of frontier.json and finals.json, and the formula's JSON; None is not known yet."""

    frontier: Sequence[FrontierRow] | None
    formula_json: str | None
    finals: Sequence[FinalRow]


def write_conclusion(runs: SearchRuns, conclusion: Conclusion) -> None:
    """Bring MLflow in line with a conclusion; what is already so is not sent again. Runs that are not listed have its marks."""
    if runs.listed:
        _mark(runs, conclusion)
    _write_artifacts(runs, conclusion)
    if conclusion.formula_json is not None and json.loads(conclusion.formula_json).get("usable"):
        _register(runs, conclusion.formula_json)


def marks_of(conclusion: Conclusion) -> str:
    """A digest of the tags that a conclusion puts on trials and finals."""
    return content_digest(json.dumps([_ranks(conclusion), _labels(conclusion)], sort_keys=True))


def _ranks(conclusion: Conclusion) -> Mapping[str, int] | None:
    return (
        None
        if conclusion.frontier is None
        else {row.run: row.pareto_rank for row in conclusion.frontier}
    )


def _labels(conclusion: Conclusion) -> dict[str, str]:
    return {row.run: row.label for row in conclusion.finals}


def _mark(runs: SearchRuns, conclusion: Conclusion) -> None:
    """``frontier`` and ``pareto_rank`` of who is on it, ``frontier`` false of who left it, labels of finals.

    All other trials have had their ``frontier`` false since they ended.
    """
    ranks, labels = _ranks(conclusion), _labels(conclusion)
    for key, child in runs.children.items():
        run, wanted = run_of(key), {}
        if run in labels:
            wanted[LABEL_TAG] = labels[run]
        if ranks is not None and run in ranks:
            wanted |= {FRONTIER_TAG: "true", RANK_TAG: str(ranks[run])}
        elif ranks is not None and child.tags.get(FRONTIER_TAG) == "true":
            wanted[FRONTIER_TAG] = "false"
        changed = {tag: value for tag, value in wanted.items() if child.tags.get(tag) != value}
        stale = ranks is not None and run not in ranks and RANK_TAG in child.tags
        if (changed or stale) and runs.tags.get(MARKED):
            runs.unseal()  # what it says of the marks is no longer so
        if changed:
            runs.log(child, tags=changed)
        if stale:
            runs.unmark(child, RANK_TAG)


def _write_artifacts(runs: SearchRuns, conclusion: Conclusion) -> None:
    """Files on the parent run; a tag with the content's digest tells which are there."""
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
            runs.tell({f"{DIGEST}.{name}": content_digest(text)})


def _csv(frontier: Sequence[FrontierRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in frontier:
        figures = {**row.to_json(), **dict(zip("rdw", row.rdw, strict=True))}
        writer.writerow([figures.get(column) for column in CSV_COLUMNS])
    return text.getvalue()


def _register(runs: SearchRuns, formula: str) -> None:
    """The formula as the newest version of one registered model: a JSON file, no code. Aliases move only with a new one."""
    digest = content_digest(formula)
    if runs.tags.get(REGISTERED) == digest:
        return
    tags = {KEY: runs.key, SEARCH: runs.plan.search, DIGEST: digest}
    ensure_model(runs.client, MODEL, "r(c) and d(c) of the tiny formula: formula.json")
    version = only_version(runs.client, MODEL, runs.key, digest) or _new_version(
        runs, formula, tags
    )
    for alias in {CHAMPION, runs.plan.search}:
        if allowed_alias(alias):
            runs.client.set_registered_model_alias(MODEL, alias, version)
    runs.tell({REGISTERED: digest})


def _new_version(runs: SearchRuns, formula: str, tags: dict[str, str]) -> str:
    client, model = runs.client, _logged_model(runs, tags)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "formula.json").write_text(formula, encoding="utf-8")
        client.log_model_artifacts(model.model_id, folder)
    client.finalize_logged_model(model.model_id, "READY")
    # Without a server, MLflow would look models:/ up at its global address, which is not ours.
    source = f"models:/{model.model_id}" if is_served(runs.uri) else model.artifact_location
    client.create_model_version(
        MODEL,
        source,
        run_id=runs.parent_id,
        tags=tags,
        model_id=model.model_id,
        await_creation_for=0,
    )
    version = only_version(client, MODEL, runs.key, tags[DIGEST])
    assert version is not None
    return version


def _logged_model(runs: SearchRuns, tags: dict[str, str]) -> "LoggedModel":
    """The formula's logged model, one of those that lost answers left, the others deleted."""
    client, wanted = (
        runs.client,
        f"tags.`{KEY}` = '{tags[KEY]}' and tags.`{DIGEST}` = '{tags[DIGEST]}'",
    )
    found = client.search_logged_models([runs.experiment_id], wanted)
    if not found:
        client.create_logged_model(
            runs.experiment_id, MODEL, source_run_id=runs.parent_id, tags=tags, model_type=MODEL
        )
        found = client.search_logged_models([runs.experiment_id], wanted)
    kept, *losers = sorted(found, key=lambda model: model.model_id)
    for model in losers:
        client.delete_logged_model(model.model_id)
    return kept
