"""What follows from results: the frontier, the formula, the final networks. All of it is made anew from what is there."""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from search_spaces import Network, RequestError, SearchSpace, get_space
from tinynet_search.config import SearchSection
from tinynet_search.formula.baselines import baseline
from tinynet_search.formula.frontier import FrontierModel, TrialPoint, select_frontier, spearman
from tinynet_search.formula.tiny_formula import TinyFormula, fit_formula
from tinynet_search.plan.candidates import candidate_of, candidates_of
from tinynet_search.search.state import SearchState
from tinynet_search.store.directory import FINALS, FORMULA, FRONTIER, Candidate, SearchStore
from tinynet_search.store.schema import (
    FinalRow,
    FrontierRow,
    LongerTraining,
    Plan,
    refusing,
)
from trainables.result import ResultSummary
from trainables.run_name import RunName

if TYPE_CHECKING:
    from tinynet_search.tracking.publisher import Publisher

TINY = "tiny formula"


class Conclusion:
    """Frontier, formula and final networks of a search, and where the publisher learns of them.

    Attributes:
        frontier, formula, final_rows: as they were written last; the formula is None before the first ``conclude``.
        notes: why final networks are missing.
    """

    def __init__(
        self,
        store: SearchStore,
        plan: Plan,
        search: SearchSection,
        state: SearchState,
        publisher: "Publisher",
    ) -> None:
        self._store, self._plan, self._search = store, plan, search
        self._state, self._publisher = state, publisher
        self.frontier: list[FrontierRow] = []
        self.formula: TinyFormula | None = None
        self.final_rows: list[FinalRow] = []
        self.notes: list[str] = []

    @property
    def budgets(self) -> int:
        """How many budgets final networks are trained for."""
        return len(self._search.finals)

    def conclude(self) -> TinyFormula:
        """Write the frontier and the formula of the results there are; once all trials have ended, the finals too."""
        store, plan, state = self._store, self._plan, self._state
        if state.adaptive:
            state.redraw(candidates_of(plan, store, state.epochs))
            self._publisher.watch(state.candidates)  # those of another driver too
        state.read(store.summaries(state.unread))
        self.write_frontier()
        formula = write_formula(store, plan, self.frontier, state.counts)
        self.formula = formula
        waiting = len(state.pending_trials)
        if waiting:
            wait = f"final networks wait for {waiting} trials without a result"
            self.notes = [wait] if self._search.finals else []
        elif formula.usable:
            self._choose_finals(formula)
        elif self._search.finals:
            self.notes = [f"no final networks: {formula.reason}"]
        if self._search.frontier_epochs is not None and not waiting:
            state.continued = continued(
                state.candidates, self.frontier, self._search.frontier_epochs
            )
            self._publisher.watch(state.continued)
        self.final_rows = store.final_rows()
        state.read(store.summaries(state.unread))
        # Final networks may train for days: what led to them is to be seen meanwhile.
        self.publish()
        return formula

    def publish(self) -> None:
        """Have what follows from the results sent to MLflow."""
        if self.formula is not None:
            self._publisher.conclude(self.frontier, self.formula.to_json(), self.final_rows)

    def write_frontier(self) -> None:
        """Select the frontier of all results and write it."""
        state = self._state
        self.frontier = write_frontier(self._store, self._plan, state.candidates, state.results)

    def _choose_finals(self, formula: TinyFormula) -> None:
        search, state = self._search, self._state
        rows, self.notes = final_rows(
            self._plan, formula, search.finals, state.epochs, rules=search.compare
        )
        self._store.write_rows(FINALS, rows)
        state.finals = [Candidate.of(row.spec) for row in rows]
        self._publisher.watch(state.finals)


def continued(
    candidates: Iterable[Candidate], frontier: Sequence[FrontierRow], epochs: int
) -> list[Candidate]:
    """The frontier's models at a longer budget."""
    by_run = {candidate.run: candidate for candidate in candidates}
    models = [by_run[row.run] for row in frontier]
    return [Candidate(model.spec.with_epochs(epochs), model.network) for model in models]


def with_longest(
    store: SearchStore, rows: Sequence[FrontierRow], results: Mapping[RunName, ResultSummary]
) -> list[FrontierRow]:
    """Rows of a frontier; those whose model was trained for more epochs too say for how many, and how good it then was.

    Args:
        results: those that are known; only others are read.
    """
    runs: dict[str, list[RunName]] = {}
    for run in store.finished():
        runs.setdefault(run.id, []).append(run)
    # The row's run by each run of the same model for more epochs.
    wanted = {
        run: row.run for row in rows for run in runs.get(row.id, []) if run.epochs > row.run.epochs
    }
    longest: dict[RunName, LongerTraining] = {}
    known = {run: results[run] for run in wanted if run in results}
    read = store.summaries(run for run in wanted if run not in results)
    for run, result in sorted((known | read).items(), key=lambda item: item[0].epochs):
        if result.top1 is not None:
            longest[wanted[run]] = LongerTraining(run=run, epochs=run.epochs, top1=result.top1)
    return [row.model_copy(update={"longer": longest.get(row.run)}) for row in rows]


def prepare() -> None:
    """Import what the formula is fitted with: a second that is free while the last trials train.

    In the caller's thread: two threads that import at once can see half of a module.
    """
    importlib.import_module("sklearn.gaussian_process")


def points_of(
    candidates: Sequence[Candidate], results: Mapping[RunName, ResultSummary]
) -> list[TrialPoint]:
    """What the frontier sees of the trials that have ended."""
    ended = [(c, results[c.run]) for c in candidates if c.run in results]
    return [TrialPoint(c.run, c.spec.rdw, c.c, result.top1, result.status) for c, result in ended]


def write_frontier(
    store: SearchStore,
    plan: Plan,
    candidates: Sequence[Candidate],
    results: Mapping[RunName, ResultSummary],
) -> list[FrontierRow]:
    """Select the frontier of all results and write it: rows by rising c, with ``pareto_rank``."""
    by_run = {c.run: c for c in candidates}
    selected = select_frontier(
        points_of(candidates, results),
        fraction=plan.frontier.fraction,
        minimum=plan.frontier.minimum,
    )
    with refusing("the frontier"):
        rows = [_row(by_run[RunName.parse(model.id)], model) for model in selected]
    rows = with_longest(store, rows, results)
    store.write_rows(FRONTIER, rows)
    return rows


def _row(candidate: Candidate, model: FrontierModel) -> FrontierRow:
    network = candidate.network
    return FrontierRow(
        run=candidate.run,
        rdw=candidate.spec.rdw,
        c=model.c,
        macs=network.macs,
        params=network.params,
        resolution=network.resolution,
        top1=model.top1,
        pareto_rank=model.pareto_rank,
    )


def spearman_of(frontier: Sequence[FrontierRow]) -> dict[str, float | None]:
    """Spearman's rank correlation of r, d and w with c over a frontier."""
    return spearman([TrialPoint(row.run, row.rdw, row.c, row.top1, "finished") for row in frontier])


def write_formula(
    store: SearchStore, plan: Plan, frontier: Sequence[FrontierRow], trials: Mapping[str, int]
) -> TinyFormula:
    """Fit r(c) and d(c) on the frontier and write the formula; ``trials``: how many there were, by what became of them."""
    formula = fit_formula(
        get_space(plan.space.name),
        [(row.c, row.rdw[0], row.rdw[1]) for row in frontier],
        provenance={
            "search": plan.search,
            "data": plan.data.fingerprint,
            "recipe": plan.recipe.name,
            "epochs": sorted({row.run.epochs for row in frontier}),
            "models": [row.id for row in frontier],
            "spearman": spearman_of(frontier),
            "trials": dict(trials),
        },
        num_classes=plan.space.num_classes,
    )
    store.folder.write(FORMULA, formula.to_json().encode())
    return formula


def final_rows(
    plan: Plan,
    formula: TinyFormula,
    budgets: Sequence[float],
    epochs: int,
    *,
    rules: Sequence[str],
) -> tuple[list[FinalRow], list[str]]:
    """The final jobs of the formula's networks, and of other rules' beside them; and why any are missing.

    A budget beyond the frontier is extrapolated, since it was asked for by name, and its row says so.
    """
    ranges: dict[str, Sequence[float]] = {**plan.space.ranges}
    space = get_space(plan.space.name).narrowed(ranges)
    rows: list[FinalRow] = []
    refused: list[str] = []
    for c in budgets:
        for label in (TINY, *rules):
            network, note, extrapolated = _final(formula, space, c, plan.space.num_classes, label)
            if network is None:
                refused.append(f"no final network of the rule {label!r} for c = {c:g}: {note}")
                continue
            spec = candidate_of(plan, network, epochs=epochs, kind="final").spec
            with refusing("a final network"):
                row = FinalRow(
                    run=spec.run, label=label, c=c, note=note, extrapolated=extrapolated, spec=spec
                )
            rows.append(row)
    return rows, refused


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
