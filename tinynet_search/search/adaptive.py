"""Where Tune gets its trials from: sources of candidates behind one Tune searcher.

A source gives the next candidate, None while it waits for running ones, or END. What was drawn is written to the
search directory before it is trained, so a driver that dies forgets nothing.
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

# Suggestions in a row that are no new network before Optuna is taken to have seen them all.
MOST_REPEATS = 200


class Adaptive:
    """Optuna's multi-objective search (top-1 up, c down) through Tune's OptunaSearch: c, d and r drawn, w solved.

    A new driver tells Optuna every result that is there; the candidates it had drawn are trained first.

    Args:
        state: of the search; its candidates grow as they are drawn.
        drawn: called with each candidate before it is trained.
    """

    def __init__(
        self,
        plan: Plan,
        store: SearchStore,
        state: SearchState,
        drawn: Callable[[list[Candidate]], None],
    ) -> None:
        self._plan, self._store, self._state, self._tell_drawn = plan, store, state, drawn
        self._space, self._classes = plan.space.narrowed(), plan.space.num_classes
        self._known = {c.id for c in state.candidates}
        self._left = state.pending_trials
        self._asked: dict[str, str] = {}
        self._space_of = self._distributions()
        self._optuna = self._warm()

    def next(self) -> Next:
        if self._left:
            return self._left.pop(0)
        drawn = self._state.candidates
        if len(drawn) >= self._state.trials:
            return END
        candidate = self._suggest()
        if candidate is None:
            return None if self._asked else END
        if not self._store.add_batch(len(drawn), [candidate]):
            return self._others(candidate)
        self._take([candidate])
        return candidate

    def _take(self, candidates: list[Candidate]) -> None:
        self._state.draw(candidates)
        self._known |= {c.id for c in candidates}
        self._tell_drawn(candidates)

    def _others(self, refused: Candidate) -> Next:
        """Another driver has drawn in the meantime: what it wrote down is what is trained, and this one's draw is forgotten."""
        self._optuna.on_trial_complete(self._asked.pop(refused.run), error=True)
        state = self._state
        theirs = candidates_of(self._plan, self._store, state.epochs)[len(state.candidates) :]
        self._take(theirs)
        state.read(self._store.summaries([c.run for c in theirs]))
        self._left += state.pending(theirs)
        return self.next()

    def done(self, candidate: Candidate) -> None:
        ticket, result = (
            self._asked.pop(candidate.run, None),
            self._state.results.get(candidate.run),
        )
        if ticket is not None:
            self._tell(ticket, result)
        elif result is not None:
            self._add(candidate, result)

    def _tell(self, ticket: str, result: ResultSummary | None) -> None:
        if result is None or result.top1 is None:
            self._optuna.on_trial_complete(ticket, error=True)
        else:
            self._optuna.on_trial_complete(ticket, {"top1": result.top1, "c": result.c})

    def _suggest(self) -> Candidate | None:
        for attempt in range(MOST_REPEATS):
            ticket = f"{len(self._state.candidates)}-{attempt}"
            values = self._optuna.suggest(ticket)
            assert values is not None
            network = solved_width(
                self._space, values["c"], values["r"], values["d"], self._classes
            )
            if network is None:
                self._optuna.on_trial_complete(ticket, error=True)
                continue
            candidate = candidate_of(self._plan, network, epochs=self._state.epochs)
            if candidate.id not in self._known:
                self._asked[candidate.run] = ticket
                return candidate
            self._tell(ticket, self._state.results.get(candidate.run))
        return None

    def _distributions(self) -> "dict[str, FloatDistribution]":
        from optuna.distributions import FloatDistribution

        space = {"c": FloatDistribution(*self._space.band, log=True)}
        return space | {key: FloatDistribution(*self._space.ranges[key]) for key in ("d", "r")}

    def _warm(self) -> Any:
        """OptunaSearch, its study told of the results so far; the seed moves on with the draw, or it would repeat it."""
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
        """Tell the study of a trial that an earlier driver drew."""
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
