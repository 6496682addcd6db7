"""Derives the frontier, the formula and the final networks from the results of a search.

All of them are recomputed from the search directory. Called by the search driver and its Tune run.
"""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from search_spaces import Network, RequestError, SearchSpace, get_space
from tinynet_search.config.sections import SearchSection
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
    validating,
)
from tinynet_search.tracking.search_metrics import search_metrics
from trainables.result import ResultSummary
from trainables.run_name import RunName

if TYPE_CHECKING:
    from tinynet_search.tracking.publisher import Publisher

TINY = "tiny formula"


class Conclusion:
    """Computes the frontier, formula and final networks, writes them and notifies the publisher.

    Attributes:
        frontier, formula, final_rows: The last written values. The formula is None before the first
            ``conclude``.
        notes: Reasons why final networks are missing.
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
        self._others: dict[RunName, ResultSummary] = {}

    @property
    def budgets(self) -> int:
        """Number of budgets for which final networks are trained."""
        return len(self._search.finals)

    def conclude(self) -> TinyFormula:
        """Write the frontier and the formula of the current results.

        The final networks are chosen and written once all trials have ended.
        """
        store, plan, state = self._store, self._plan, self._state
        if state.adaptive:
            state.redraw(candidates_of(plan, store, state.epochs))
            self._publisher.watch(state.candidates)  # including those of another driver
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
        # Final networks may train for days: show the results that led to them in the meantime.
        self.publish()
        return formula

    def publish(self) -> None:
        """Pass the frontier, the formula, the final rows and the figures to the publisher."""
        if self.formula is None:
            return
        drawn = {candidate.id for candidate in self._state.candidates}
        metrics = search_metrics(self._plan, drawn, self._all_results(), self.frontier)
        self._publisher.conclude(self.frontier, self.formula.to_json(), self.final_rows, metrics)

    def _all_results(self) -> dict[RunName, ResultSummary]:
        """All results of the directory, those of other numbers of epochs included."""
        known, finished = self._state.results, self._store.finished()
        self._others |= self._store.summaries(finished - known.keys() - self._others.keys())
        others = {run: result for run, result in self._others.items() if run in finished}
        return others | known

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
    """The models of the frontier as candidates with more epochs."""
    by_run = {candidate.run: candidate for candidate in candidates}
    models = [by_run[row.run] for row in frontier]
    return [Candidate(model.spec.with_epochs(epochs), model.network) for model in models]


def with_longest(
    store: SearchStore, rows: Sequence[FrontierRow], results: Mapping[RunName, ResultSummary]
) -> list[FrontierRow]:
    """Frontier rows, with the longest training of each model that was also trained for more epochs.

    The ``longer`` field of such a row holds the run, its epochs and its top-1 accuracy.

    Args:
        results: Known results; only other results are read from storage.
    """
    runs: dict[str, list[RunName]] = {}
    for run in store.finished():
        runs.setdefault(run.id, []).append(run)
    # Longer runs of a model, each mapped to the run of its frontier row.
    row_runs: dict[RunName, RunName] = {}
    for row in rows:
        for run in runs.get(row.id, []):
            if run.epochs > row.run.epochs:
                row_runs[run] = row.run
    longest: dict[RunName, LongerTraining] = {}
    known = {run: results[run] for run in row_runs if run in results}
    read = store.summaries(run for run in row_runs if run not in results)
    for run, result in sorted((known | read).items(), key=lambda item: item[0].epochs):
        if result.top1 is not None:
            longest[row_runs[run]] = LongerTraining(run=run, epochs=run.epochs, top1=result.top1)
    return [row.model_copy(update={"longer": longest.get(row.run)}) for row in rows]


def preload_sklearn() -> None:
    """Import scikit-learn's Gaussian processes while the last trials still train.

    The import takes about a second. It runs in the caller's thread, because two threads that import
    at the same time can see a partially initialized module.
    """
    importlib.import_module("sklearn.gaussian_process")


def points_of(
    candidates: Sequence[Candidate], results: Mapping[RunName, ResultSummary]
) -> list[TrialPoint]:
    """The trials that have ended, as input for the frontier selection."""
    ended = [(c, results[c.run]) for c in candidates if c.run in results]
    return [TrialPoint(c.run, c.spec.rdw, c.c, result.top1, result.status) for c, result in ended]


def write_frontier(
    store: SearchStore,
    plan: Plan,
    candidates: Sequence[Candidate],
    results: Mapping[RunName, ResultSummary],
) -> list[FrontierRow]:
    """Select the frontier of all results and write it: rows sorted by c, with ``pareto_rank``."""
    by_run = {c.run: c for c in candidates}
    selected = select_frontier(
        points_of(candidates, results),
        fraction=plan.frontier.fraction,
        minimum=plan.frontier.minimum,
    )
    with validating("the frontier"):
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
    """Fit r(c) and d(c) on the frontier and write the formula.

    Args:
        trials: Number of trials by status, recorded in the provenance.
    """
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
    """The final trainings: networks of the formula and of the rules to compare with.

    A budget outside the frontier is extrapolated, because the user requested it explicitly; its
    row is marked as extrapolated.

    Returns:
        The rows, and one message per network that does not exist.
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
            with validating("a final network"):
                row = FinalRow(
                    run=spec.run, label=label, c=c, note=note, extrapolated=extrapolated, spec=spec
                )
            rows.append(row)
    return rows, refused


def _final(
    formula: TinyFormula, space: SearchSpace, c: float, classes: int, label: str
) -> tuple[Network | None, str | None, bool]:
    """The network of one rule for a budget.

    Returns:
        The network or None, a note (why it is missing, or its distance from the budget), and
        whether the formula was extrapolated.
    """
    if label != TINY:
        result = baseline(label, space, c, classes)
        return result.network, result.note, False
    try:
        suggestion = formula.suggest(c, space=space, num_classes=classes, extrapolate=True)
    except RequestError as error:
        return None, str(error), False
    return suggestion.network, None, suggestion.extrapolated
