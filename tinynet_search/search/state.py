"""The state of a search: its candidates, their results, and what is still to be trained.

Plain values without storage and without Ray. Made and kept up to date by the driver; read by the run on Tune and by the
conclusion.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tinynet_search.search.failures import FailureTally
from tinynet_search.store.directory import Candidate
from trainables.result import FAILED, FINISHED, ResultSummary
from trainables.run_name import RunName


@dataclass
class SearchState:
    """What a search has and lacks.

    Attributes:
        trials: how many are wanted in all; epochs: of each.
        adaptive: whether candidates are drawn while the search runs.
        stop_at_failed: the share of failed trials above which the rest is not worth training.
        candidates: all that were drawn, in their order; the first ``trials`` of them are wanted. Changed by ``draw`` and
            ``redraw``.
        results: of everything that has ended, by run name.
        before: runs that had a result when this driver began.
        finals: the final jobs; continued: frontier models at more epochs. Both follow from the results of all trials.
    """

    trials: int
    epochs: int
    adaptive: bool
    stop_at_failed: float
    candidates: list[Candidate]
    results: dict[RunName, ResultSummary] = field(default_factory=dict)
    before: frozenset[RunName] = frozenset()
    finals: list[Candidate] = field(default_factory=list)
    continued: list[Candidate] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._count()

    def _count(self) -> None:
        """Take the trials and their failures from the start."""
        self._trial_runs = {c.run for c in self.wanted}
        self._tally = FailureTally(self.trials, self.stop_at_failed)
        for candidate in self.wanted:
            self._tally.add(candidate.run, self.results.get(candidate.run))

    def draw(self, candidates: Sequence[Candidate]) -> None:
        """More candidates have been drawn."""
        room = max(0, self.trials - len(self.candidates))
        self.candidates += candidates
        self._trial_runs |= {c.run for c in candidates[:room]}

    def redraw(self, candidates: list[Candidate]) -> None:
        """These are all the candidates that there are."""
        self.candidates = candidates
        self._count()

    def read(self, results: Mapping[RunName, ResultSummary]) -> None:
        """Results that were found in the search directory."""
        for run, result in results.items():
            self.ended(run, result)

    def is_trial(self, run: RunName) -> bool:
        """Whether it is one of the trials that are wanted."""
        return run in self._trial_runs

    @property
    def wanted(self) -> list[Candidate]:
        """The candidates that this search trains."""
        return self.candidates[: self.trials]

    @property
    def later(self) -> list[Candidate]:
        """What is trained once all trials have ended: final jobs and continued models."""
        return [*self.finals, *self.continued]

    @property
    def everything(self) -> list[Candidate]:
        return [*self.candidates, *self.later]

    def pending(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Those without a result, each once."""
        unique = {c.run: c for c in candidates if c.run not in self.results}
        return list(unique.values())

    @property
    def pending_trials(self) -> list[Candidate]:
        return self.pending(self.wanted)

    @property
    def pending_later(self) -> list[Candidate]:
        return self.pending(self.later)

    @property
    def trials_left(self) -> bool:
        """Whether there are trials to train, or to draw."""
        to_draw = self.adaptive and len(self.candidates) < self.trials
        return to_draw or bool(self.pending_trials)

    @property
    def unread(self) -> list[RunName]:
        """Runs of this search whose results are not known yet."""
        return [c.run for c in self.pending(self.everything)]

    def ended(self, run: RunName, result: ResultSummary | None) -> None:
        """A training has ended; None: without a result."""
        if result is not None:
            self.results[run] = result
        if run in self._trial_runs:
            self._tally.add(run, result)

    def forget(self, runs: Sequence[RunName]) -> None:
        """Have trials trained again, whose results were set aside."""
        for run in runs:
            self.results.pop(run, None)
        self.before = self.before.difference(runs)
        self._count()

    @property
    def verdict(self) -> str | None:
        """Why the rest of the trials is not worth training, None where it is: too many have failed."""
        return self._tally.verdict

    @property
    def counts(self) -> dict[str, int]:
        """Trials by status: what the formula follows from."""
        ended = [self.results[c.run].status for c in self.candidates if c.run in self.results]
        counted = {status: ended.count(status) for status in (FINISHED, FAILED)}
        return {"planned": len(self.candidates)} | counted

    @property
    def new(self) -> list[ResultSummary]:
        """Results that this driver's trainings left."""
        runs = dict.fromkeys(c.run for c in self.everything)
        return [self.results[run] for run in runs if run in self.results and run not in self.before]

    def trained_elsewhere(self, finished: Collection[RunName]) -> int:
        """Trials to be trained that have a result for another number of epochs."""
        ids = {run.id for run in finished}
        return sum(c.id in ids for c in self.pending_trials)

    def trainable(self, finals: Iterable[RunName], longer: int | None) -> set[RunName]:
        """Runs that this search can train: its trials, final jobs that are written down, frontier models at more epochs.

        Args:
            finals: runs of the final jobs that are written down; longer: epochs of continued models, None without any.
        """
        trials = {c.run for c in self.wanted}
        models = {run.with_epochs(longer) for run in trials} if longer else set[RunName]()
        return trials | set(finals) | models
