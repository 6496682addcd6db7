"""The state of a search: its candidates, their results and the trials still to be trained.

Plain values that use neither storage nor Ray. The driver creates and updates the state; the Tune
run and the conclusion read it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tinynet_search.search.failures import FailureTally
from tinynet_search.store.directory import Candidate
from trainables.result import FAILED, FINISHED, ResultSummary
from trainables.run_name import RunName


@dataclass
class SearchState:
    """Candidates and results of a search.

    Attributes:
        trials: Number of trials to train.
        epochs: Number of epochs per trial.
        adaptive: Whether candidates are drawn while the search runs.
        stop_at_failed: Share of failed trials above which the search stops.
        candidates: All drawn candidates, in the order drawn; the first ``trials`` of them are
            trained. Changed by ``draw`` and ``redraw``.
        results: Results of all runs that have ended, by run name.
        finished_before: Runs that had a result when this driver started.
        finals: The final trainings, derived from the results of all trials.
        continued: Frontier models with more epochs, derived from the results of all trials.
    """

    trials: int
    epochs: int
    adaptive: bool
    stop_at_failed: float
    candidates: list[Candidate]
    results: dict[RunName, ResultSummary] = field(default_factory=dict)
    finished_before: frozenset[RunName] = frozenset()
    finals: list[Candidate] = field(default_factory=list)
    continued: list[Candidate] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._count()

    def _count(self) -> None:
        """Recompute the trial runs and the failure tally."""
        self._trial_runs = {c.run for c in self.trial_candidates}
        self._tally = FailureTally(self.trials, self.stop_at_failed)
        for candidate in self.trial_candidates:
            self._tally.add(candidate.run, self.results.get(candidate.run))

    def draw(self, candidates: Sequence[Candidate]) -> None:
        """Append newly drawn candidates."""
        room = max(0, self.trials - len(self.candidates))
        self.candidates += candidates
        self._trial_runs |= {c.run for c in candidates[:room]}

    def redraw(self, candidates: list[Candidate]) -> None:
        """Replace the list of candidates."""
        self.candidates = candidates
        self._count()

    def read(self, results: Mapping[RunName, ResultSummary]) -> None:
        """Add results that were read from the search directory."""
        for run, result in results.items():
            self.ended(run, result)

    def is_trial(self, run: RunName) -> bool:
        """Whether the run is one of the trials of this search."""
        return run in self._trial_runs

    @property
    def trial_candidates(self) -> list[Candidate]:
        """The candidates that this search trains."""
        return self.candidates[: self.trials]

    @property
    def later(self) -> list[Candidate]:
        """Candidates trained after all trials have ended: final trainings and continued models."""
        return [*self.finals, *self.continued]

    @property
    def all_candidates(self) -> list[Candidate]:
        return [*self.candidates, *self.later]

    def pending(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """The candidates without a result, without duplicates."""
        unique = {c.run: c for c in candidates if c.run not in self.results}
        return list(unique.values())

    @property
    def pending_trials(self) -> list[Candidate]:
        return self.pending(self.trial_candidates)

    @property
    def pending_later(self) -> list[Candidate]:
        return self.pending(self.later)

    @property
    def trials_left(self) -> bool:
        """Whether trials remain to be drawn or trained."""
        to_draw = self.adaptive and len(self.candidates) < self.trials
        return to_draw or bool(self.pending_trials)

    @property
    def unread(self) -> list[RunName]:
        """Runs of this search whose results have not been read."""
        return [c.run for c in self.pending(self.all_candidates)]

    def ended(self, run: RunName, result: ResultSummary | None) -> None:
        """Record that a training has ended, with a result or without one (None)."""
        if result is not None:
            self.results[run] = result
        if run in self._trial_runs:
            self._tally.add(run, result)

    def forget(self, runs: Sequence[RunName]) -> None:
        """Drop the results of runs that are trained again."""
        for run in runs:
            self.results.pop(run, None)
        self.finished_before = self.finished_before.difference(runs)
        self._count()

    @property
    def stop_reason(self) -> str | None:
        """Why the search should stop: too many trials have failed. None if it should continue."""
        return self._tally.stop_reason

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials by status, recorded in the formula."""
        ended = [self.results[c.run].status for c in self.candidates if c.run in self.results]
        counted = {status: ended.count(status) for status in (FINISHED, FAILED)}
        return {"planned": len(self.candidates)} | counted

    @property
    def new(self) -> list[ResultSummary]:
        """Results produced by this driver."""
        runs = dict.fromkeys(c.run for c in self.all_candidates)
        return [
            self.results[run]
            for run in runs
            if run in self.results and run not in self.finished_before
        ]

    def trained_elsewhere(self, finished: Collection[RunName]) -> int:
        """Number of pending trials that have a result for a different number of epochs."""
        ids = {run.id for run in finished}
        return sum(c.id in ids for c in self.pending_trials)

    def trainable(self, finals: Iterable[RunName], longer: int | None) -> set[RunName]:
        """Runs that this search can train: trials, recorded final trainings and longer trainings.

        Args:
            finals: Runs of the recorded final trainings.
            longer: Number of epochs of continued models, None if there are none.
        """
        trials = {c.run for c in self.trial_candidates}
        models = {run.with_epochs(longer) for run in trials} if longer else set[RunName]()
        return trials | set(finals) | models
