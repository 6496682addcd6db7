"""AdaptiveSource sampling: a candidate source backed by Optuna, used by the Tune run of a search.

Each candidate is written to the search directory before it is trained, so a driver that is killed
leaves a complete record.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from search_spaces.samplers import solved_width
from tinynet_search.cluster.tune import END, Next
from tinynet_search.plan.candidates import candidate_of, candidates_of
from tinynet_search.search.state import SearchState
from tinynet_search.store.directory import Candidate, SearchStore
from tinynet_search.store.schema import Plan
from trainables.result import ResultSummary

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution, FloatDistribution

# Consecutive suggestions without a new network after which the search space counts as exhausted.
MAX_REPEATS = 200


class AdaptiveSource:
    """Optuna's multi-objective search (maximize top-1, minimize c) through Tune's OptunaSearch.

    Optuna suggests c, d and r; the width w is solved from them. A restarted driver adds all
    existing results to the Optuna study and first trains the candidates that were drawn but not
    trained.

    Args:
        state: State of the search; drawn candidates are appended to it.
        drawn: Called with new candidates before they are trained.
    """

    def __init__(
        self,
        plan: Plan,
        store: SearchStore,
        state: SearchState,
        drawn: Callable[[list[Candidate]], None],
    ) -> None:
        self._plan, self._store, self._state, self._on_drawn = plan, store, state, drawn
        self._space, self._classes = plan.space.narrowed(), plan.space.num_classes
        self._known = {c.id for c in state.candidates}
        self._left = state.pending_trials
        self._optuna_ids: dict[str, str] = {}  # Optuna's trial id by run name
        self._space_of = self._distributions()
        self._optuna = self._create_optuna()

    def next(self) -> Next:
        if self._left:
            return self._left.pop(0)
        drawn = self._state.candidates
        if len(drawn) >= self._state.trials:
            return END
        candidate = self._suggest()
        if candidate is None:
            return None if self._optuna_ids else END
        if not self._store.add_batch(len(drawn), [candidate]):
            return self._adopt_other_batch(candidate)
        self._take([candidate])
        return candidate

    def _take(self, candidates: list[Candidate]) -> None:
        self._state.draw(candidates)
        self._known |= {c.id for c in candidates}
        self._on_drawn(candidates)

    def _adopt_other_batch(self, rejected: Candidate) -> Next:
        """Discard the rejected draw and continue with the batch that another driver wrote first."""
        self._optuna.on_trial_complete(self._optuna_ids.pop(rejected.run), error=True)
        state = self._state
        drawn = candidates_of(self._plan, self._store, state.epochs)[len(state.candidates) :]
        self._take(drawn)
        state.read(self._store.summaries([c.run for c in drawn]))
        self._left += state.pending(drawn)
        return self.next()

    def done(self, candidate: Candidate) -> None:
        optuna_id = self._optuna_ids.pop(candidate.run, None)
        result = self._state.results.get(candidate.run)
        if optuna_id is not None:
            self._report(optuna_id, result)
        elif result is not None:
            self._add(candidate, result)

    def _report(self, optuna_id: str, result: ResultSummary | None) -> None:
        if result is None or result.top1 is None:
            self._optuna.on_trial_complete(optuna_id, error=True)
        else:
            self._optuna.on_trial_complete(optuna_id, {"top1": result.top1, "c": result.c})

    def _suggest(self) -> Candidate | None:
        for attempt in range(MAX_REPEATS):
            optuna_id = f"{len(self._state.candidates)}-{attempt}"
            values = self._optuna.suggest(optuna_id)
            assert values is not None
            network = solved_width(
                self._space, values["c"], values["r"], values["d"], self._classes
            )
            if network is None:
                self._optuna.on_trial_complete(optuna_id, error=True)
                continue
            candidate = candidate_of(self._plan, network, epochs=self._state.epochs)
            if candidate.id not in self._known:
                self._optuna_ids[candidate.run] = optuna_id
                return candidate
            self._report(optuna_id, self._state.results.get(candidate.run))
        return None

    def _distributions(self) -> "dict[str, FloatDistribution]":
        from optuna.distributions import FloatDistribution

        space = {"c": FloatDistribution(*self._space.band, log=True)}
        return space | {key: FloatDistribution(*self._space.ranges[key]) for key in ("d", "r")}

    def _create_optuna(self) -> Any:
        """Create an OptunaSearch whose study contains the results so far.

        The seed is offset by the number of candidates, so a restart does not repeat earlier draws.
        """
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = optuna.storages.InMemoryStorage()
        search = OptunaSearch(
            dict(self._space_of),
            metric=["top1", "c"],
            mode=["max", "min"],
            seed=self._plan.seed + len(self._state.candidates),
            storage=storage,
            study_name="tinynet",
        )
        self._study = optuna.load_study(study_name="tinynet", storage=storage)
        for candidate in self._state.candidates:
            if result := self._state.results.get(candidate.run):
                self._add(candidate, result)
        return search

    def _add(self, candidate: Candidate, result: ResultSummary) -> None:
        """Add a trial that an earlier driver drew to the study."""
        import optuna

        if result.top1 is None:
            return
        (r, d, _), span = candidate.spec.rdw, self._space_of["c"]
        params = {"c": min(max(candidate.c, span.low), span.high), "d": d, "r": r}
        distributions: dict[str, BaseDistribution] = {**self._space_of}
        self._study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=distributions, values=[result.top1, result.c]
            )
        )
