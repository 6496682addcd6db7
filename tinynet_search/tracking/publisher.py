"""Publishes a search directory to MLflow from a thread of the driver, or from ``tinynet sync``.

The cost of MLflow for a search is limited, whether MLflow responds or not:

- At the start: the import of MLflow's client, one or two seconds in the caller's thread. No
  request is made in the caller's thread.
- During the search: about 10 ms of CPU per trial in the publisher's thread. A server that does not
  respond is tried at most once per minute.
- At the end: ``RESPONSE_TIMEOUT`` seconds without a response, ``CLOSE_TIMEOUT`` in total; see
  ``BackgroundPublisher.close``.
- Memory: a few hundred bytes per published trial. Unpublished trials are read from the directory
  when they are sent.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from itertools import islice

from tinynet_search.commands import sync_command
from tinynet_search.errors import TrackingError
from tinynet_search.mlflow_client.connection import RejectedRequestError, address, mlflow_access
from tinynet_search.store.directory import Candidate, SearchStore
from tinynet_search.store.schema import FinalRow, FrontierRow, Plan
from tinynet_search.tracking.background import BackgroundPublisher
from tinynet_search.tracking.conclusion import Conclusion, tags_digest, write_conclusion
from tinynet_search.tracking.feed import Feed, ProgressReader, RunContents, TrainingUpdate
from tinynet_search.tracking.projection import (
    FRONTIER_TAG,
    begun_ms,
    created_ms,
    epoch_points,
    figure_points,
    result_tags,
    trial_key,
    trial_name,
    trial_params,
    trial_tags,
)
from tinynet_search.tracking.registered_formula import DEFAULT_REGISTRATION, Registration
from tinynet_search.tracking.runs import UNFINISHED, NewRun
from tinynet_search.tracking.search_metrics import SearchMetrics
from tinynet_search.tracking.search_runs import COMPLETE_TAG, TAGS_DIGEST_TAG, SearchRuns, run_of
from tinynet_search.tracking.view import add_view, link_of
from trainables.run_name import RunName
from trainables.storage.documents import LARGE
from trainables.storage.folder import TooLargeError
from trainables.trial_folder import result_name

# Trainings per batch. Runs of a batch are created together before MLflow is queried once for
# duplicates; the results of a batch are in memory at the same time.
BATCH_SIZE = 50


class Publisher(BackgroundPublisher[SearchRuns]):
    """Publishes one search; see ``BackgroundPublisher``.

    Attributes:
        experiment_id: id of the search's experiment in MLflow, set after the first connection.
        run_id: id of the search's parent run in MLflow, set after the first connection.
        registered: the version of the formula that was registered or promoted last.
    """

    def __init__(
        self,
        store: SearchStore,
        plan: Plan,
        uri: str,
        *,
        warn: Callable[[str], None],
        registration: Registration = DEFAULT_REGISTRATION,
    ) -> None:
        super().__init__(uri, "search", sync_command(store.url, uri, plan.space.name), warn)
        self._store, self._plan, self._registration = store, plan, registration
        self._lock = threading.Lock()
        self._new: dict[RunName, Candidate] = {}
        self._watched: dict[RunName, Candidate] = {}
        self._waiting: dict[RunName, Candidate] = {}
        # Digests of the results that were published completely.
        self._complete: dict[RunName, bytes] = {}
        self._conclusion: Conclusion | None = None
        self._concluded: Conclusion | None = None
        self._feed, self._reader = Feed(), ProgressReader(store)
        self.experiment_id: str | None = None
        self.run_id: str | None = None
        self.registered: str | None = None

    @property
    def epochs_sent(self) -> int:
        return self._feed.epochs

    def watch(self, candidates: Sequence[Candidate]) -> None:
        """Add trials or finals, which are published once they have started."""
        with self._lock:
            self._new |= {candidate.run: candidate for candidate in candidates}

    def conclude(
        self,
        frontier: Sequence[FrontierRow] | None,
        formula_json: str | None,
        finals: Sequence[FinalRow],
        metrics: SearchMetrics | None = None,
    ) -> None:
        """Publish the conclusion of the search; may be called again when it changes.

        Args:
            frontier: rows of the frontier, None to keep what MLflow has.
            formula_json: content of formula.json, None to keep what MLflow has.
            finals: rows of the final trainings.
            metrics: figures of the search, None to keep what MLflow has.
        """
        conclusion = Conclusion(frontier, formula_json, tuple(finals), metrics)
        if conclusion != self._conclusion:
            self._conclusion = conclusion

    def sync_once(self) -> None:
        """Send what is new. Errors of single trials are raised after the rest was sent.

        Raises:
            TrackingError: MLflow does not respond, or rejects a request.
            RequestError: a file of the search directory is damaged.
            StorageError: the search directory cannot be read.
        """
        with mlflow_access(self._uri):
            runs = self._connected()
        conclusion = self._conclusion
        if (
            conclusion is not None
            and not runs.listed
            and runs.tags.get(TAGS_DIGEST_TAG) != tags_digest(conclusion)
        ):
            with mlflow_access(self._uri):
                runs.list_all()
            self._reset_waiting(runs)
            self._concluded = None
        self._add_watched()
        faults: list[Exception] = []
        for batch in _batches(self._reader.update(self._waiting, faults)):
            if self.abandoned:
                return
            self._publish(runs, batch, faults)
        if conclusion is not None and conclusion is not self._concluded and not self.abandoned:
            with mlflow_access(self._uri):
                self._write(runs, conclusion)
            self._concluded = conclusion
        if faults:
            raise faults[0]

    def _write(self, runs: SearchRuns, conclusion: Conclusion) -> None:
        registered = write_conclusion(runs, conclusion, self._registration)
        self.registered = registered or self.registered

    def finish(self, status: str, end: int) -> int:
        with mlflow_access(self._uri):
            runs = self._connected()
            runs.settle()
        deleted = self._mark_complete(runs)
        with mlflow_access(self._uri):
            runs.finish(status, end)
        if deleted:
            raise TrackingError(
                f"MLflow at {address(self._uri)} lost {len(deleted)} of this search's runs, "
                "deleted by another publisher"
            )
        return len({run_of(key) for key in runs.children} | runs.complete_runs)

    def _mark_complete(self, runs: SearchRuns) -> Set[str]:
        """Mark the search as complete on its parent run, if everything was sent.

        All runs are queried once more before the mark is set.

        Returns:
            The runs that have been deleted in MLflow in the meantime.
        """
        finished, conclusion = self._store.finished(), self._conclusion
        if (
            finished & self._waiting.keys()
            or conclusion is not self._concluded
            or not _is_complete(runs, finished)
        ):
            return set[str]()
        with mlflow_access(self._uri):
            marks = {
                COMPLETE_TAG: self._digest(finished),
                TAGS_DIGEST_TAG: tags_digest(conclusion)
                if conclusion
                else runs.tags.get(TAGS_DIGEST_TAG, ""),
            }
            if marks.items() <= runs.tags.items():
                return set()
            runs.list_all()
            if not _is_complete(runs, finished):
                runs.clear_complete()
                return finished - {run_of(key) for key in runs.children}
            if conclusion is not None:
                self._write(runs, conclusion)
            runs.set_parent_tags(marks)
        return set()

    def _connect(self) -> SearchRuns:
        runs = SearchRuns(self._uri, self._plan, self._store.url, self._results)
        if self._training and runs.parent.info.status not in UNFINISHED:
            runs.client.update_run(runs.parent_id, status="RUNNING")
        self.experiment_id, self.run_id = runs.experiment_id, runs.parent_id
        self.link = link_of(self._uri, runs.experiment_id, add_view(runs))
        if runs.listed:
            self._reset_waiting(runs)
        return runs

    def _reset_waiting(self, runs: SearchRuns) -> None:
        """Determine what is still to be sent, from all runs in MLflow."""
        ended = {run_of(key) for key, child in runs.children.items() if child.ended}
        self._complete = {run: digest for run, digest in self._complete.items() if run in ended}
        self._waiting = {
            run: candidate for run, candidate in self._watched.items() if run not in self._complete
        }

    def _add_watched(self) -> None:
        """Add newly watched candidates, except those whose runs are complete in MLflow."""
        assert self._runs is not None
        with self._lock:
            new, self._new = self._new, {}
        self._watched |= new
        self._waiting |= {
            run: candidate for run, candidate in new.items() if run not in self._complete
        }
        known = {run_of(key) for key in self._runs.children}
        for run in self._runs.complete_runs & self._waiting.keys() - known:
            del self._waiting[run]

    def _publish(
        self, runs: SearchRuns, batch: Sequence[TrainingUpdate], faults: list[Exception]
    ) -> None:
        """Publish a batch of trainings; first delete outdated runs and create missing ones."""
        with mlflow_access(self._uri):
            if runs.unsettled:
                runs.settle()
            for update in batch:
                child = runs.children.get(trial_key(self._plan, update.candidate.run))
                if child and self._feed.differs(runs, child, update):
                    self._feed.forget(child)
                    runs.discard(child)
            missing = [
                update
                for update in batch
                if trial_key(self._plan, update.candidate.run) not in runs.children
            ]
            if missing:
                self._concluded = None  # the new runs need their labels and frontier tags
                runs.ensure(self._new_run(runs, update) for update in missing)
        for update in batch:
            try:
                with mlflow_access(self._uri):
                    self._send(runs, update)
            except RejectedRequestError as error:
                faults.append(error)
            else:
                self._reader.mark_sent(update)
                if update.result:
                    run = update.candidate.run
                    self._complete[run] = self._digest_of(run)
                    del self._waiting[run]

    def _new_run(self, runs: SearchRuns, update: TrainingUpdate) -> NewRun:
        candidate = update.candidate
        tags = trial_tags(self._plan, candidate, runs.parent_id)
        return NewRun(trial_name(candidate), begun_ms(update.epochs, update.result), tags)

    def _send(self, runs: SearchRuns, update: TrainingUpdate) -> None:
        candidate, epochs, result, _ = update
        child = runs.children[trial_key(self._plan, candidate.run)]
        if child.ended:
            return  # `differs` has checked that it ended with this result
        figures, curves = figure_points(candidate, created_ms(self._plan)), epoch_points(epochs)
        contents = RunContents(trial_name(candidate), {}, trial_params(candidate), figures, curves)
        tags = result_tags(result) if result else {}
        if result and candidate.spec.kind != "final" and FRONTIER_TAG not in child.tags:
            # So the conclusion needs to tag only the trials on the frontier.
            tags[FRONTIER_TAG] = "false"
        self._feed.send(runs, child, contents, update, tags)
        if result:
            self._feed.end(runs, child, result)

    def _results(self) -> tuple[set[RunName], str]:
        finished = self._store.finished()
        return finished, self._digest(finished)

    def _digest(self, finished: Iterable[RunName]) -> str:
        """Return a digest of the bytes of results in the directory."""
        text = hashlib.sha256()
        for run in sorted(finished):
            text.update(run.encode() + (self._complete.get(run) or self._digest_of(run)))
        return text.hexdigest()[:32]

    def _digest_of(self, run: RunName) -> bytes:
        try:
            return hashlib.sha256(self._store.folder.read(result_name(run), LARGE)).digest()[:16]
        except (FileNotFoundError, TooLargeError):
            return b""


def _is_complete(runs: SearchRuns, finished: Set[str]) -> bool:
    """Whether every result has a run, and every run has ended."""
    published = {run_of(key) for key in runs.children} | runs.complete_runs
    return published == finished and all(child.ended for child in runs.children.values())


def _batches(updates: Iterator[TrainingUpdate]) -> Iterator[list[TrainingUpdate]]:
    while batch := list(islice(updates, BATCH_SIZE)):
        yield batch
