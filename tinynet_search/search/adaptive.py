"""Where Tune gets its trials from: sources of candidates behind one Tune searcher.

A source gives the next candidate, None while it waits for running ones, or END. What was drawn is written to the
search directory before it is trained, so a driver that dies forgets nothing.
"""

from collections.abc import Mapping
from typing import Any

from search_spaces import get_space
from search_spaces.samplers import solved_width
from tinynet_search.cluster.tune import END, Next
from tinynet_search.plan.candidates import candidate_of, candidates_of
from tinynet_search.store.directory import Candidate, SearchStore

# Suggestions in a row that are no new network before Optuna is taken to have seen them all.
PATIENCE = 200


class Adaptive:
    """Optuna's multi-objective search (top-1 up, c down) through Tune's OptunaSearch: c, d and r drawn, w solved.

    A new driver tells Optuna every result that is there; the candidates it had drawn are trained first.
    """

    def __init__(
        self, plan: Mapping[str, Any], store: SearchStore, wanted: int, epochs: int
    ) -> None:
        self._plan, self._store, self._wanted, self._epochs = plan, store, wanted, epochs
        planned = plan["space"]
        self._space, self._classes = (
            get_space(planned["name"]).narrowed(planned["ranges"], planned["band"]),
            planned["num_classes"],
        )
        self._drawn = candidates_of(plan, store, epochs)
        self._known = {c.id for c in self._drawn}
        results = store.summaries([c.run for c in self._drawn])
        self._left = [c for c in self._drawn[:wanted] if c.run not in results]
        self._asked: dict[str, str] = {}
        self._space_of = self._distributions()
        self._optuna = self._warm(results)

    def next(self) -> Next:
        if self._left:
            return self._left.pop(0)
        if len(self._drawn) >= self._wanted:
            return END
        candidate = self._suggest()
        if candidate is None:
            return None if self._asked else END
        if not self._store.add_batch(len(self._drawn), [candidate]):
            return self._others(candidate)
        self._drawn.append(candidate)
        self._known.add(candidate.id)
        return candidate

    def _others(self, refused: Candidate) -> Next:
        """Another driver has drawn in the meantime: what it wrote down is what is trained, and this one's draw is forgotten."""
        self._optuna.on_trial_complete(self._asked.pop(refused.run), error=True)
        theirs = candidates_of(self._plan, self._store, self._epochs)[len(self._drawn) :]
        self._drawn += theirs
        self._known |= {c.id for c in theirs}
        there = self._store.finished()
        self._left += [c for c in theirs if c.run not in there]
        return self.next()

    def done(self, candidate: Candidate) -> None:
        ticket, result = self._asked.pop(candidate.run, None), self._store.summary(candidate.run)
        if ticket is not None:
            self._tell(ticket, result)
        elif result is not None:
            self._add(candidate, result)

    def _tell(self, ticket: str, result: Mapping[str, Any] | None) -> None:
        if result is None or result["status"] != "finished":
            self._optuna.on_trial_complete(ticket, error=True)
        else:
            self._optuna.on_trial_complete(
                ticket, {"top1": result["metrics"]["top1"], "c": result["network"]["c"]}
            )

    def _suggest(self) -> Candidate | None:
        for attempt in range(PATIENCE):
            ticket = f"{len(self._drawn)}-{attempt}"
            values = self._optuna.suggest(ticket)
            assert values is not None
            network = solved_width(
                self._space, values["c"], values["r"], values["d"], self._classes
            )
            if network is None:
                self._optuna.on_trial_complete(ticket, error=True)
                continue
            candidate = candidate_of(self._plan, network, epochs=self._epochs)
            if candidate.id not in self._known:
                self._asked[candidate.run] = ticket
                return candidate
            self._tell(ticket, self._store.summary(candidate.run))
        return None

    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import FloatDistribution

        space = {"c": FloatDistribution(*self._space.band, log=True)}
        return space | {key: FloatDistribution(*self._space.ranges[key]) for key in ("d", "r")}

    def _warm(self, results: Mapping[str, Mapping[str, Any]]) -> Any:
        """OptunaSearch, its study told of the results so far; the seed moves on with the draw, or it would repeat it."""
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = optuna.storages.InMemoryStorage()
        goals: dict[str, Any] = {"metric": ["top1", "c"], "mode": ["max", "min"]}
        seed = self._plan["seed"] + len(self._drawn)
        search = OptunaSearch(
            self._space_of, seed=seed, storage=storage, study_name="tinynet", **goals
        )
        self._study = optuna.load_study(study_name="tinynet", storage=storage)
        for candidate in self._drawn:
            if candidate.run in results:
                self._add(candidate, results[candidate.run])
        return search

    def _add(self, candidate: Candidate, result: Mapping[str, Any]) -> None:
        """Tell the study of a trial that an earlier driver drew."""
        import optuna

        if result["status"] != "finished":
            return
        (r, d, _), span = candidate.spec.rdw, self._space_of["c"]
        params = {"c": min(max(candidate.c, span.low), span.high), "d": d, "r": r}
        values = [result["metrics"]["top1"], result["network"]["c"]]
        self._study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=dict(self._space_of), values=values
            )
        )
