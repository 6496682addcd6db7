"""The publisher of a search: projects its directory onto MLflow from a thread of the driver.

What MLflow can cost a search, whatever becomes of it:

- at the start the import of MLflow's client, one or two seconds of the caller's; nothing is asked in the caller's thread;
- while it runs the publisher's thread: about 10 ms of CPU a trial, and what does not answer is tried at most once a minute;
- at the end ``SILENCE`` seconds without an answer, ``LONGEST_CLOSE`` in all: see ``Background.close``;
- memory of a few hundred bytes a trial that was published; what was not is read from the directory when its turn comes.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from itertools import islice

from tinynet_search.errors import TrackingError
from tinynet_search.mlflow_client.connection import RefusedError, address, reaching
from tinynet_search.store.directory import Candidate, SearchStore
from tinynet_search.store.schema import FinalRow, FrontierRow, Plan
from tinynet_search.tracking.background import Background
from tinynet_search.tracking.conclusion import Conclusion, marks_of, write_conclusion
from tinynet_search.tracking.feed import Feed, News, ProgressReader, Sheet
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
from tinynet_search.tracking.runs import UNFINISHED, Wanted
from tinynet_search.tracking.search_runs import MARKED, SEAL, SearchRuns, run_of
from tinynet_search.tracking.view import add_view, link_of
from trainables.run_name import RunName
from trainables.storage.documents import LARGE
from trainables.storage.folder import TooLargeError
from trainables.trial_folder import result_name

# Trainings whose runs are created before MLflow is asked what became of them; their results are in memory together.
AT_ONCE = 50


class Publisher(Background[SearchRuns]):
    """Publishes one search; see ``Background``.

    Attributes:
        experiment_id, run_id: of the search in MLflow, once reached.
    """

    def __init__(
        self, store: SearchStore, plan: Plan, uri: str, *, warn: Callable[[str], None]
    ) -> None:
        super().__init__(uri, "search", warn)
        self._store, self._plan = store, plan
        self._lock = threading.Lock()
        self._new: dict[RunName, Candidate] = {}
        self._watched: dict[RunName, Candidate] = {}
        self._waiting: dict[RunName, Candidate] = {}
        # Of the results that were published whole: their digests.
        self._complete: dict[RunName, bytes] = {}
        self._conclusion: Conclusion | None = None
        self._concluded: Conclusion | None = None
        self._feed, self._reader = Feed(), ProgressReader(store)
        self.experiment_id: str | None = None
        self.run_id: str | None = None

    @property
    def epochs_sent(self) -> int:
        return self._feed.epochs

    def watch(self, candidates: Sequence[Candidate]) -> None:
        """Publish these trials or finals too, once they have started."""
        with self._lock:
            self._new |= {candidate.run: candidate for candidate in candidates}

    def conclude(
        self,
        frontier: Sequence[FrontierRow] | None,
        formula_json: str | None,
        finals: Sequence[FinalRow],
    ) -> None:
        """Publish what follows from the results; may be called again when it changes. None leaves what is there."""
        conclusion = Conclusion(frontier, formula_json, tuple(finals))
        if conclusion != self._conclusion:
            self._conclusion = conclusion

    def sync_once(self) -> None:
        """Send what is new. What is damaged or refused is passed over, and named when the rest was sent.

        Raises:
            TrackingError: MLflow does not answer, or refuses.
            RequestError: a file of the search directory is damaged.
            StorageError: the search directory cannot be read.
        """
        with reaching(self._uri):
            runs = self._connected()
        conclusion = self._conclusion
        if (
            conclusion is not None
            and not runs.listed
            and runs.tags.get(MARKED) != marks_of(conclusion)
        ):
            with reaching(self._uri):
                runs.list_all()
            self._recount(runs)
            self._concluded = None
        self._look()
        faults: list[Exception] = []
        for news in _batches(self._reader.news(self._waiting, faults)):
            if self.abandoned:
                return
            self._publish(runs, news, faults)
        if conclusion is not None and conclusion is not self._concluded and not self.abandoned:
            with reaching(self._uri):
                write_conclusion(runs, conclusion)
            self._concluded = conclusion
        if faults:
            raise faults[0]

    def finish(self, status: str, end: int) -> int:
        with reaching(self._uri):
            runs = self._connected()
            runs.settle()
        gone = self._seal(runs)
        with reaching(self._uri):
            runs.finish(status, end)
        if gone:
            raise TrackingError(
                f"MLflow at {address(self._uri)} lost {len(gone)} of this search's runs, deleted by another publisher"
            )
        return len({run_of(key) for key in runs.children} | runs.sealed)

    def _seal(self, runs: SearchRuns) -> Set[str]:
        """Where everything was sent, look once more at all that is there, and say so; the runs that somebody deleted meanwhile."""
        finished, conclusion = self._store.finished(), self._conclusion
        if (
            finished & self._waiting.keys()
            or conclusion is not self._concluded
            or not _whole(runs, finished)
        ):
            return set[str]()
        with reaching(self._uri):
            seal = {
                SEAL: self._digest(finished),
                MARKED: marks_of(conclusion) if conclusion else runs.tags.get(MARKED, ""),
            }
            if seal.items() <= runs.tags.items():
                return set()
            runs.list_all()
            if not _whole(runs, finished):
                runs.unseal()
                return finished - {run_of(key) for key in runs.children}
            if conclusion is not None:
                write_conclusion(runs, conclusion)
            runs.tell(seal)
        return set()

    def _connect(self) -> SearchRuns:
        runs = SearchRuns(self._uri, self._plan, self._results)
        if self._live and runs.parent.info.status not in UNFINISHED:
            runs.client.update_run(runs.parent_id, status="RUNNING")
        self.experiment_id, self.run_id = runs.experiment_id, runs.parent_id
        self.link = link_of(self._uri, runs.experiment_id, add_view(runs))
        if runs.listed:
            self._recount(runs)
        return runs

    def _recount(self, runs: SearchRuns) -> None:
        """What is still to be sent, of all runs there are."""
        ended = {run_of(key) for key, child in runs.children.items() if child.ended}
        self._complete = {run: digest for run, digest in self._complete.items() if run in ended}
        self._waiting = {
            run: candidate for run, candidate in self._watched.items() if run not in self._complete
        }

    def _look(self) -> None:
        """Take up what is watched since; of sealed results nothing is left to send."""
        assert self._runs is not None
        with self._lock:
            new, self._new = self._new, {}
        self._watched |= new
        self._waiting |= {
            run: candidate for run, candidate in new.items() if run not in self._complete
        }
        for run in self._runs.sealed & self._waiting.keys() - {
            run_of(key) for key in self._runs.children
        }:
            del self._waiting[run]

    def _publish(self, runs: SearchRuns, part: Sequence[News], faults: list[Exception]) -> None:
        """Some trainings: the runs that are wrong or missing first, all together."""
        with reaching(self._uri):
            if runs.unsettled:
                runs.settle()
            for news in part:
                child = runs.children.get(trial_key(self._plan, news.candidate.run))
                if child and self._feed.differs(runs, child, news):
                    self._feed.forget(child)
                    runs.discard(child)
            missing = [
                news
                for news in part
                if trial_key(self._plan, news.candidate.run) not in runs.children
            ]
            if missing:
                self._concluded = None  # their labels and frontier tags are still to come
                runs.ensure(self._wanted(runs, news) for news in missing)
        for news in part:
            try:
                with reaching(self._uri):
                    self._send(runs, news)
            except RefusedError as error:
                faults.append(error)
            else:
                self._reader.told(news)
                if news.result:
                    run = news.candidate.run
                    self._complete[run] = self._digest_of(run)
                    del self._waiting[run]

    def _wanted(self, runs: SearchRuns, news: News) -> Wanted:
        candidate = news.candidate
        tags = trial_tags(self._plan, candidate, runs.parent_id)
        return Wanted(trial_name(candidate), begun_ms(news.epochs, news.result), tags)

    def _send(self, runs: SearchRuns, news: News) -> None:
        candidate, epochs, result, _ = news
        child = runs.children[trial_key(self._plan, candidate.run)]
        if child.ended:
            return  # as `differs` found, by this result
        figures, curves = figure_points(candidate, created_ms(self._plan)), epoch_points(epochs)
        sheet = Sheet(trial_name(candidate), {}, trial_params(candidate), figures, curves)
        tags = result_tags(result) if result else {}
        if result and candidate.spec.kind != "final" and FRONTIER_TAG not in child.tags:
            tags[FRONTIER_TAG] = (
                "false"  # so that the conclusion need not mark those that are not on it
            )
        self._feed.tell(runs, child, sheet, news, tags)
        if result:
            self._feed.end(runs, child, result)

    def _results(self) -> tuple[set[RunName], str]:
        finished = self._store.finished()
        return finished, self._digest(finished)

    def _digest(self, finished: Iterable[RunName]) -> str:
        """Of results in the directory, byte for byte."""
        text = hashlib.sha256()
        for run in sorted(finished):
            text.update(run.encode() + (self._complete.get(run) or self._digest_of(run)))
        return text.hexdigest()[:32]

    def _digest_of(self, run: RunName) -> bytes:
        try:
            return hashlib.sha256(self._store.folder.read(result_name(run), LARGE)).digest()[:16]
        except (FileNotFoundError, TooLargeError):
            return b""


def _whole(runs: SearchRuns, finished: Set[str]) -> bool:
    """Whether every result has its run, and no run goes on."""
    return {run_of(key) for key in runs.children} | runs.sealed == finished and all(
        child.ended for child in runs.children.values()
    )


def _batches(news: Iterator[News]) -> Iterator[list[News]]:
    while part := list(islice(news, AT_ONCE)):
        yield part
