"""What follows from results: the frontier, the formula, the final networks. All of it is made anew from what is there."""

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from search_spaces import Network, RequestError, SearchSpace, get_space
from tinynet_search.formula.baselines import baseline
from tinynet_search.formula.frontier import TrialPoint, select_frontier, spearman
from tinynet_search.formula.tiny_formula import TinyFormula, fit_formula
from tinynet_search.plan.candidates import candidate_of
from tinynet_search.store.directory import FINALS, FORMULA, FRONTIER, Candidate, SearchStore

_RUN = re.compile(r"(.+)-e(\d+)")


TINY = "tiny formula"


def continued(
    candidates: Iterable[Candidate], frontier: Sequence[Mapping[str, Any]], epochs: int
) -> list[Candidate]:
    """The frontier's models at a longer budget."""
    by_run = {candidate.run: candidate for candidate in candidates}
    models = (by_run[row["run"]] for row in frontier)
    return [
        Candidate(replace(m.spec, recipe={**m.spec.recipe, "epochs": epochs}), m.network)
        for m in models
    ]


def with_longest(store: SearchStore, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a frontier; those whose model was trained for more epochs too say for how many, and how good it then was."""
    budgets: dict[str, list[int]] = {}
    for run in store.finished():
        if found := _RUN.fullmatch(run):
            budgets.setdefault(found[1], []).append(int(found[2]))
    # The row's run by each run of the same model for more epochs.
    wanted: dict[str, str] = {}
    for row in rows:
        for epochs in budgets.get(row["id"], []):
            if epochs > _epochs(row["run"]):
                wanted[f"{row['id']}-e{epochs}"] = row["run"]
    longest: dict[str, dict[str, Any]] = {}
    for run, result in sorted(store.summaries(wanted).items(), key=lambda item: _epochs(item[0])):
        if result["status"] == "finished":
            top1 = result["metrics"]["top1"]
            longest[wanted[run]] = {"run": run, "epochs": _epochs(run), "top1": top1}
    with_longer = []
    for row in rows:
        longer = longest.get(row["run"])
        with_longer.append({**row, "longer": longer} if longer else dict(row))
    return with_longer


def _epochs(run: str) -> int:
    return int(run.rpartition("-e")[2])


def prepare() -> None:
    """Import what the formula is fitted with: a second that is free while the last trials train.

    In the caller's thread: two threads that import at once can see half of a module.
    """
    importlib.import_module("sklearn.gaussian_process")


def points_of(
    candidates: Sequence[Candidate], results: Mapping[str, Mapping[str, Any]]
) -> list[TrialPoint]:
    """What the frontier sees of the trials that have ended."""
    ended = [(c, results[c.run]) for c in candidates if c.run in results]
    return [
        TrialPoint(c.run, c.spec.rdw, c.c, result["metrics"].get("top1"), result["status"])
        for c, result in ended
    ]


def write_frontier(
    store: SearchStore, plan: Mapping[str, Any], candidates: Sequence[Candidate]
) -> list[dict[str, Any]]:
    """Select the frontier of all results and write it: rows by rising c, with ``pareto_rank``."""
    by_run = {c.run: c for c in candidates}
    points = points_of(candidates, store.summaries(by_run))
    selected = select_frontier(
        points, fraction=plan["frontier"]["fraction"], minimum=plan["frontier"]["minimum"]
    )
    rows = [
        {
            "id": by_run[m.id].id,
            "run": m.id,
            "rdw": list(m.rdw),
            "c": m.c,
            "macs": by_run[m.id].network["macs"],
            "params": by_run[m.id].network["params"],
            "resolution": by_run[m.id].network["resolution"],
            "top1": m.top1,
            "pareto_rank": m.pareto_rank,
        }
        for m in selected
    ]
    rows = with_longest(store, rows)
    store.write_json(FRONTIER, rows)
    return rows


def write_formula(
    store: SearchStore,
    plan: Mapping[str, Any],
    frontier: Sequence[Mapping[str, Any]],
    trials: Mapping[str, int],
) -> TinyFormula:
    """Fit r(c) and d(c) on the frontier and write the formula; ``trials``: how many there were, by what became of them."""
    models = [
        TrialPoint(row["run"], row["rdw"], row["c"], row["top1"], "finished") for row in frontier
    ]
    formula = fit_formula(
        get_space(plan["space"]["name"]),
        [(row["c"], row["rdw"][0], row["rdw"][1]) for row in frontier],
        provenance={
            "search": plan["search"],
            "data": plan["data"]["fingerprint"],
            "recipe": plan["recipe"]["name"],
            "epochs": sorted({int(str(row["run"]).rsplit("-e", 1)[1]) for row in frontier}),
            "models": [row["id"] for row in frontier],
            "spearman": spearman(models),
            "trials": dict(trials),
        },
        num_classes=plan["space"]["num_classes"],
    )
    store.folder.write(FORMULA, formula.to_json().encode())
    return formula


def write_finals(
    store: SearchStore,
    plan: Mapping[str, Any],
    formula: TinyFormula,
    budgets: Sequence[float],
    epochs: int,
    *,
    rules: Sequence[str],
) -> tuple[list[Candidate], list[str]]:
    """The final jobs of the formula's networks, and of other rules' beside them; and why any are missing.

    A budget beyond the frontier is extrapolated, since it was asked for by name, and its row says so.
    """
    space, classes = (
        get_space(plan["space"]["name"]).narrowed(plan["space"]["ranges"]),
        plan["space"]["num_classes"],
    )
    rows: list[dict[str, Any]] = []
    refused: list[str] = []
    candidates: list[Candidate] = []
    for c in budgets:
        for label in (TINY, *rules):
            network, note, extrapolated = _final(formula, space, c, classes, label)
            if network is None:
                refused.append(f"no final network of the rule {label!r} for c = {c:g}: {note}")
                continue
            candidate = candidate_of(plan, network, epochs=epochs, kind="final")
            candidates.append(candidate)
            row = {"run": candidate.run, "label": label, "c": c, "note": note}
            rows.append(
                {
                    **row,
                    "rdw": list(network.rdw),
                    "extrapolated": extrapolated,
                    "spec": candidate.spec.to_json(),
                }
            )
    store.write_json(FINALS, rows)
    return candidates, refused


def _final(
    formula: TinyFormula, space: SearchSpace, c: float, classes: int, label: str
) -> tuple[Network | None, str | None, bool]:
    """(network, why there is none or how far it lies from the budget, whether the formula was extrapolated)"""
    if label != TINY:
        found = baseline(label, space, c, classes)
        return found.network, found.note, False
    try:
        suggestion = formula.suggest(c, space=space, num_classes=classes, extrapolate=True)
    except RequestError as error:
        return None, str(error), False
    return suggestion.network, None, suggestion.extrapolated
