"""Runs candidates as Ray Tune trials: sources of candidates, a Tune searcher, and the Tune runs.

Called by the driver of a search and by trainings on a cluster.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ray.tune.search import Searcher

from tinynet_search.cluster.placement import ClusterRequest, trial_scaling
from tinynet_search.cluster.ray_internals import drop_aws_variables
from tinynet_search.signals import Stopping
from tinynet_search.store.directory import Candidate
from trainables.executors import TRAINABLES, TaskSettings, TrialTask, tune_resources

if TYPE_CHECKING:
    from ray.tune import Callback

# Tune keeps every trial of a run, about 100 kB of the driver's memory each. Tune's processes
# restart between runs.
MAX_TRIALS_PER_RUN = 1000


END = "end"
# The next candidate, None while the source waits for running candidates, or END.
Next = Candidate | None | str


class Source(Protocol):
    """A source of candidates for a Tune run."""

    def next(self) -> Next:
        """The next candidate, None while the source waits for running candidates, or END."""
        ...

    def done(self, candidate: Candidate) -> None:
        """Record that a candidate has ended, with a result or after too many lost workers."""
        ...


class FixedSource:
    """A source of a fixed list of candidates."""

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        self._remaining: Iterator[Candidate] = iter(list(candidates))

    def next(self) -> Next:
        return next(self._remaining, END)

    def done(self, candidate: Candidate) -> None:
        return None


class PhasedSource:
    """A sequence of sources; each is created when all trials of the one before have ended.

    Args:
        factories: create the sources.
        idle: called once, when a trial could start but the source has no candidate until running
            trials end.
    """

    def __init__(
        self, factories: Iterable[Callable[[], Source]], idle: Callable[[], None] = lambda: None
    ) -> None:
        self._factories = iter(factories)
        self._idle: Callable[[], None] | None = idle
        self._source: Source = FixedSource([])
        self._running: set[str] = set()

    def next(self) -> Next:
        # A phase ends when its source returns END and none of its trials is running. Until then
        # the result is None, and Tune calls again later.
        while True:
            candidate = self._source.next()
            if isinstance(candidate, Candidate):
                self._running.add(candidate.run)
                return candidate
            if candidate is None or self._running:
                if candidate is not None and self._idle:
                    self._idle()
                    self._idle = None
                return None
            create_source = next(self._factories, None)
            if create_source is None:
                return END
            self._source = create_source()

    def done(self, candidate: Candidate) -> None:
        self._running.discard(candidate.run)
        self._source.done(candidate)


class CandidateSearch(Searcher):
    """The Tune searcher that suggests the candidates of a source in one Tune run.

    Its state is the search directory, so it saves nothing.

    Args:
        source: the source of candidates.
        settings: the settings that all trials share.
        first: the candidate that the caller has already taken from the source.
    """

    def __init__(
        self, source: Source, settings: TaskSettings, first: Candidate | None = None
    ) -> None:
        super().__init__()
        self._source, self._settings, self._first = source, settings, first
        self._suggested: dict[str, Candidate] = {}

    def suggest(self, trial_id: str) -> Any:
        candidate, self._first = self._first or self._source.next(), None
        if candidate is None:
            return None
        if isinstance(candidate, str):
            return Searcher.FINISHED
        self._suggested[trial_id] = candidate
        return TrialTask(candidate.spec, candidate.run, self._settings).to_config()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        candidate = self._suggested.get(trial_id)
        if candidate is not None:
            self._source.done(candidate)
            del self._suggested[trial_id]  # last, so that a failed call is repeated

    def save(self, checkpoint_path: str) -> None:
        return None

    def restore(self, checkpoint_path: str) -> None:
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {}


class StoppableSource:
    """A source that ends when the driver receives a request to stop.

    Args:
        source: the source of candidates.
        stopping: the state of the request to stop.
        on_ended: called with each candidate that has ended, before ``source.done``.
        should_repeat: whether a candidate that has ended runs again; ``on_ended`` is not called
            then.
    """

    def __init__(
        self,
        source: Source,
        stopping: Stopping,
        on_ended: Callable[[Candidate], None],
        should_repeat: Callable[[Candidate], bool] = lambda _: False,
    ) -> None:
        self._source, self._stopping = source, stopping
        self._on_ended, self._should_repeat = on_ended, should_repeat
        self._repeated: list[Candidate] = []

    def next(self) -> Next:
        if self._stopping.reason:
            return END
        return self._repeated.pop(0) if self._repeated else self._source.next()

    def done(self, candidate: Candidate) -> None:
        if not self._stopping.reason and self._should_repeat(candidate):
            self._repeated.append(candidate)
            return
        self._on_ended(candidate)
        self._source.done(candidate)


def run_source(
    request: ClusterRequest,
    root: str,
    source: Source,
    *,
    max_trials: int,
    at_once: int,
    callbacks: Sequence["Callback"],
    stop: str,
) -> None:
    """Run the candidates of a source as Tune trials until the source ends.

    Each Tune run has at most ``MAX_TRIALS_PER_RUN`` trials.

    Args:
        request: the settings of the search.
        root: the URL or path of the search directory, valid on every node.
        source: the source of candidates.
        max_trials: an upper bound on the number of trials.
        at_once: concurrent trials.
        callbacks: Tune callbacks of every run.
        stop: a file below the search directory; when it exists, trials end without a result.
    """
    from ray import tune

    drop_aws_variables()
    run, scaling = request.run, trial_scaling(request)
    settings = TaskSettings(
        root=root,
        scaling=scaling,
        execution=request.execution,
        stop=stop,
        placement=request.scaling.placement,
        start_timeout=run.wait_for_nodes,
    )
    trainable = tune.with_resources(TRAINABLES[run.executor], tune_resources(run.executor, scaling))
    # No trial is running between two Tune runs, so a source returns a candidate or END.
    while isinstance(first := source.next(), Candidate):
        with tempfile.TemporaryDirectory(prefix="tinynet-tune-") as scratch, quiet_tune():
            tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=CandidateSearch(source, settings, first),
                    num_samples=min(MAX_TRIALS_PER_RUN, max_trials),
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
def quiet_tune() -> Iterator[None]:
    """Discard standard output and raise the log levels of Ray.

    Tune prints boxes and the paths of its temporary files even with ``verbose=0``, and a page of
    traceback for each killed process.
    """
    levels = {"ray": logging.ERROR, "ray.tune": logging.CRITICAL, "ray.train": logging.ERROR}
    loggers = [logging.getLogger(name) for name in levels]
    previous = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(levels[logger.name])
    try:
        with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull):
            yield
    finally:
        for logger, level in zip(loggers, previous, strict=True):
            logger.setLevel(level)
