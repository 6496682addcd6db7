"""What follows from a search's results, in MLflow: frontier tags, labels, artifacts, and the formula as a registered model."""

import csv
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinynet_search.tracking.connection import is_served
from tinynet_search.tracking.models import CHAMPION, DIGEST, REGISTERED, allowed_alias, digest_of, ensure_model, version_of
from tinynet_search.tracking.projection import FRONTIER_TAG, KEY, KIND, LABEL_TAG, RANK_TAG, SEARCH
from tinynet_search.tracking.runs import SearchRuns, by_run

MODEL = "tiny-formula"
CSV_COLUMNS = ["id", "r", "d", "w", "resolution", "c", "macs", "params", "top1", "pareto_rank"]


@dataclass(frozen=True)
class Conclusion:
    """Rows of frontier.json and finals.json, the formula's JSON and a report; None is not known yet."""

    frontier: Sequence[Mapping[str, Any]] | None
    formula_json: str | None
    finals: Sequence[Mapping[str, Any]]
    report: str | None


def write_conclusion(runs: SearchRuns, conclusion: Conclusion) -> None:
    """Bring MLflow in line with a conclusion; what is already so is not sent again. ``runs`` is fresh."""
    if conclusion.frontier is not None:
        _mark_frontier(runs, {row["run"]: row["pareto_rank"] for row in conclusion.frontier})
    labels = {row["run"]: row["label"] for row in conclusion.finals}
    for name, run in by_run(runs.children):
        if name in labels and run.data.tags.get(LABEL_TAG) != labels[name]:
            runs.log(run, tags={LABEL_TAG: labels[name]})
    _write_artifacts(runs, conclusion)
    if conclusion.formula_json is not None and json.loads(conclusion.formula_json).get("usable"):
        _register(runs, conclusion.formula_json)


def _mark_frontier(runs: SearchRuns, ranks: Mapping[str, int]) -> None:
    """``frontier`` is true or false on every trial; who leaves the frontier loses its ``pareto_rank``."""
    for name, run in by_run(runs.children):
        tags = run.data.tags
        if tags.get(KIND) != "trial":
            continue
        wanted = {FRONTIER_TAG: "true", RANK_TAG: str(ranks[name])} if name in ranks else {FRONTIER_TAG: "false"}
        changed = {key: value for key, value in wanted.items() if tags.get(key) != value}
        if changed:
            runs.log(run, tags=changed)
        if RANK_TAG in tags and RANK_TAG not in wanted:
            runs.client.delete_tag(run.info.run_id, RANK_TAG)


def _write_artifacts(runs: SearchRuns, conclusion: Conclusion) -> None:
    """Files on the parent run; a tag with the content's digest tells which are there."""
    texts = {"formula.json": conclusion.formula_json, "report.md": conclusion.report}
    if conclusion.frontier is not None:
        texts |= {"frontier.json": json.dumps(list(conclusion.frontier), indent=1) + "\n", "frontier.csv": _csv(conclusion.frontier)}
    for name, text in texts.items():
        if text is not None and runs.parent.data.tags.get(f"{DIGEST}.{name}") != digest_of(text):
            runs.client.log_text(runs.parent_id, text, name)
            runs.client.set_tag(runs.parent_id, f"{DIGEST}.{name}", digest_of(text))


def _csv(frontier: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in frontier:
        figures = {**row, **dict(zip("rdw", row["rdw"], strict=True))}
        writer.writerow([figures.get(column) for column in CSV_COLUMNS])
    return text.getvalue()


def _register(runs: SearchRuns, formula: str) -> None:
    """The formula as the newest version of one registered model: a JSON file, no code. Aliases move only with a new one."""
    digest = digest_of(formula)
    if runs.parent.data.tags.get(REGISTERED) == digest:
        return
    version = version_of(runs.client, MODEL, runs.key, digest) or _new_version(runs, formula, digest)
    for alias in {CHAMPION, runs.plan["search"]}:
        if allowed_alias(alias):
            runs.client.set_registered_model_alias(MODEL, alias, version)
    runs.client.set_tag(runs.parent_id, REGISTERED, digest)


def _new_version(runs: SearchRuns, formula: str, digest: str) -> str:
    client, tags = runs.client, {KEY: runs.key, SEARCH: runs.plan["search"], DIGEST: digest}
    model = client.create_logged_model(runs.experiment_id, MODEL, source_run_id=runs.parent_id, tags=tags, model_type=MODEL)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "formula.json").write_text(formula, encoding="utf-8")
        client.log_model_artifacts(model.model_id, folder)
    client.finalize_logged_model(model.model_id, "READY")
    ensure_model(client, MODEL, "r(c) and d(c) of the tiny formula: formula.json")
    # Without a server, MLflow would look models:/ up at its global address, which is not ours.
    source = f"models:/{model.model_id}" if is_served(runs.uri) else model.artifact_location
    version = client.create_model_version(MODEL, source, run_id=runs.parent_id, tags=tags, model_id=model.model_id)
    return str(version.version)
