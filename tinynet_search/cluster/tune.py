"""Candidates as Tune trials: the sources that give them, Tune's searcher over a source, and the run itself.

A source gives the next candidate, None while it waits for running ones, or END. Called by the driver of a search
and by trainings on a cluster.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ray.tune.search import Searcher

from tinynet_search.cluster.placement import ClusterRequest, of_trial
from tinynet_search.cluster.ray_internals import drop_aws_variables
from tinynet_search.signals import Stopping
from tinynet_search.store.directory import Candidate
from trainables.executors import TRAINABLES, TaskSettings, TrialTask, tune_resources

if TYPE_CHECKING:
    from ray.tune import Callback

# Tune keeps every trial of a run, some 100 kB of the driver's memory each; between runs its processes start anew.
WAVE = 1000


END = "end"
Next = Candidate | None | str


class Source(Protocol):
    def next(self) -> Next: ...

    def done(self, candidate: Candidate) -> None:
        """The candidate has ended (with a result or, after too many lost workers, without)."""
        ...


class Fixed:
    """Candidates known beforehand."""

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        self._left: Iterator[Candidate] = iter(list(candidates))

    def next(self) -> Next:
        return next(self._left, END)

    def done(self, candidate: Candidate) -> None:
        return None


class Phases:
    """One source after another, each made once the one before has ended with all its trials.

    ``idle`` is called once, when there is room for a trial and none to give until others have ended.
    """

    def __init__(
        self, makers: Iterable[Callable[[], Source]], idle: Callable[[], None] = lambda: None
    ) -> None:
        self._makers = iter(makers)
        self._idle: Callable[[], None] | None = idle
        self._source: Source = Fixed([])
        self._running: set[str] = set()

    def next(self) -> Next:
        while True:
            found = self._source.next()
            if isinstance(found, Candidate):
                self._running.add(found.run)
                return found
            if found is None or self._running:
                if found is not None and self._idle:
                    self._idle()
                    self._idle = None
                return None
            maker = next(self._makers, None)
            if maker is None:
                return END
            self._source = maker()

    def done(self, candidate: Candidate) -> None:
        self._running.discard(candidate.run)
        self._source.done(candidate)


class CandidateSearch(Searcher):
    """The Tune searcher over a source, one for each Tune run; ``first`` was taken from the source before.

    Its state is the search directory: there is nothing of its own to save.
    """

    def __init__(
        self, source: Source, settings: TaskSettings, first: Candidate | None = None
    ) -> None:
        super().__init__()
        self._source, self._settings, self._first = source, settings, first
        self._given: dict[str, Candidate] = {}

    def suggest(self, trial_id: str) -> Any:
        found, self._first = self._first or self._source.next(), None
        if found is None:
            return None
        if isinstance(found, str):
            return Searcher.FINISHED
        self._given[trial_id] = found
        return TrialTask(found.spec, found.run, self._settings).to_config()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        candidate = self._given.get(trial_id)
        if candidate is not None:
            self._source.done(candidate)
            del self._given[trial_id]  # not before: what fails there is tried again

    def save(self, checkpoint_path: str) -> None:
        return None

    def restore(self, checkpoint_path: str) -> None:
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Guarded:
    """A source that ends once the driver was asked to.

    ``ended`` is called with every trial that has ended, before the source is; ``again`` is asked of each whether it is to
    be given once more instead.
    """

    def __init__(
        self,
        source: Source,
        stopping: Stopping,
        ended: Callable[[Candidate], None],
        again: Callable[[Candidate], bool] = lambda _: False,
    ) -> None:
        self._source, self._stopping, self._ended, self._again = source, stopping, ended, again
        self._returned: list[Candidate] = []

    def next(self) -> Next:
        if self._stopping.why:
            return END
        return self._returned.pop(0) if self._returned else self._source.next()

    def done(self, candidate: Candidate) -> None:
        if not self._stopping.why and self._again(candidate):
            self._returned.append(candidate)
            return
        self._ended(candidate)
        self._source.done(candidate)


def run_source(
    request: ClusterRequest,
    root: str,
    source: Source,
    *,
    most: int,
    at_once: int,
    callbacks: Sequence["Callback"],
    stop: str,
) -> None:
    """Run a source's candidates as Tune trials until it ends: a Tune run for every ``WAVE`` of them.

    Args:
        root: the search directory as every node reaches it.
        most: an upper bound on how many trials there will be.
        at_once: concurrent trials.
        callbacks: they watch the run.
        stop: a file below the search directory; once it is there, trials end without a result.
    """
    from ray import tune

    drop_aws_variables()
    run, scaling = request.run, of_trial(request)
    settings = TaskSettings(
        root=root,
        scaling=scaling,
        execution=request.execution,
        stop=stop,
        placement=request.scaling.placement,
        start_timeout=run.wait_for_nodes,
    )
    trainable = tune.with_resources(TRAINABLES[run.executor], tune_resources(run.executor, scaling))
    # Between two waves nothing runs, so a source either has one more or has ended.
    while isinstance(first := source.next(), Candidate):
        with tempfile.TemporaryDirectory(prefix="tinynet-tune-") as scratch, _hushed():
            tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=CandidateSearch(source, settings, first),
                    num_samples=min(WAVE, most),
                    max_concurrent_trials=at_once,
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name="search",
                    storage_path=scratch,
                    verbose=0,
                    callbacks=list(callbacks),
                    failure_config=tune.FailureConfig(max_failures=run.max_failures),
                ),
            ).fit()


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Tune prints boxes and paths of its scratch even when asked not to, and a killed process as a page of traceback."""
    wanted = {"ray": logging.ERROR, "ray.tune": logging.CRITICAL, "ray.train": logging.ERROR}
    loggers = [logging.getLogger(name) for name in wanted]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(wanted[logger.name])
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
