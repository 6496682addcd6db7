"""The publisher: projects a search directory onto MLflow from a thread of the driver, and never raises into the search.

The directory is the truth and MLflow its window, so nothing is remembered on disk: what was sent is known in memory,
and sending again changes nothing. A server that does not answer is named once, then tried quietly until the end.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from search_spaces.errors import RequestError
from tinynet_search.errors import TrackingError, one_line
from tinynet_search.store import Candidate, SearchStore
from tinynet_search.tracking.conclusion import Conclusion, write_conclusion
from tinynet_search.tracking.connection import MANNERS, address, preload, reaching
from tinynet_search.tracking.projection import (
    STATUS,
    begun_ms,
    ended_ms,
    epoch_points,
    result_points,
    result_tags,
    trial_key,
    trial_name,
    trial_params,
    trial_points,
    trial_tags,
)
from tinynet_search.tracking.runs import UNFINISHED, Runs
from tinynet_search.tracking.view import add_view, link_of

if TYPE_CHECKING:
    from mlflow.entities import Run

LONGEST_WAIT = 60.0


@dataclass
class _Sent:
    """What a run has been told by this publisher."""

    epochs: int = 0
    figures: bool = False


class _News(NamedTuple):
    """What storage holds of a trial that has started."""

    candidate: Candidate
    epochs: list[dict[str, Any]]
    result: dict[str, Any] | None


class Publisher:
    """Publishes one search. One at a time may publish a search; ``warn`` gets at most one line.

    Attributes:
        busy_seconds: wall time spent publishing.
        link: where to look, once MLflow has been reached: a page of the server, or how to start one on the database.
        experiment_id, run_id: of the search in MLflow, once reached.
    """

    def __init__(self, store: SearchStore, plan: Mapping[str, Any], uri: str, *, warn: Callable[[str], None]) -> None:
        self._store, self._plan, self._uri, self._warn = store, plan, uri, warn
        self._lock = threading.Lock()
        self._watched: dict[str, Candidate] = {}
        self._conclusion: Conclusion | None = None
        self._concluded: Conclusion | None = None
        self._runs: Runs | None = None
        self._sent: dict[str, _Sent] = {}
        self._complete: set[str] = set()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._status, self._live, self._warned, self._all_sent = "FINISHED", False, False, False
        self.busy_seconds, self.epochs_sent = 0.0, 0
        self.link: str | None = None
        self.experiment_id: str | None = None
        self.run_id: str | None = None
        for key, value in MANNERS.items():
            os.environ.setdefault(key, value)

    def start(self, interval: float = 3.0) -> None:
        """Publish every ``interval`` seconds from a daemon thread; the parent run is RUNNING until ``close``."""
        with contextlib.suppress(ImportError):
            preload(self._uri)
        self._live = True
        self._thread = threading.Thread(target=self._loop, args=(interval,), name="tinynet-publisher", daemon=True)
        self._thread.start()

    def watch(self, candidates: Sequence[Candidate]) -> None:
        """Publish these trials or finals too, once they have started."""
        with self._lock:
            for candidate in candidates:
                self._watched.setdefault(candidate.run, candidate)

    def conclude(
        self,
        frontier: Sequence[Mapping[str, Any]] | None,
        formula_json: str | None,
        finals: Sequence[Mapping[str, Any]],
        report_text: str | None,
    ) -> None:
        """Publish what follows from the results; may be called again when it changes. None leaves what is there."""
        self._conclusion = Conclusion(frontier, formula_json, tuple(finals), report_text)

    def close(self, timeout: float = 30.0, status: str = "FINISHED") -> bool:
        """Send the rest and end the parent run with an MLflow ``status``, within ``timeout`` seconds.

        Trials without a result are left as KILLED: nothing trains any more.

        Returns:
            Whether everything was sent.
        """
        self._status = status
        self._stop.set()
        if self._thread is None:
            self.start()
        assert self._thread is not None
        self._thread.join(timeout)
        return self._all_sent

    def sync_once(self) -> None:
        """Send what is new.

        Raises:
            TrackingError: MLflow does not answer, or refuses.
            RequestError: a file of the search directory is damaged.
        """
        with reaching(self._uri):
            runs = self._connected()
        news = self._news()
        with reaching(self._uri):
            for item in news:
                self._publish(runs, item)
            conclusion = self._conclusion
            if conclusion is not None and conclusion is not self._concluded:
                runs.refresh()
                write_conclusion(runs, conclusion)
                self._concluded = conclusion

    def finish(self, status: str, end: int) -> int:
        """End the parent run (``end`` in ms) and leave no child running; the number of children there are.

        Raises:
            TrackingError: MLflow does not answer, or refuses.
        """
        with reaching(self._uri):
            runs = self._connected()
            runs.refresh()
            for run in runs.children.values():
                if run.info.status in UNFINISHED:
                    runs.client.set_terminated(run.info.run_id, "KILLED", end)
            if runs.parent.info.status != status:
                runs.client.set_terminated(runs.parent_id, status, end)
            return len(runs.children)

    def _loop(self, interval: float) -> None:
        wait = interval
        while not self._stop.is_set():
            wait = interval if self._attempt(self.sync_once) else min(2 * max(wait, 1.0), LONGEST_WAIT)
            self._stop.wait(wait)
        self._all_sent = self._attempt(self._last)

    def _last(self) -> None:
        end = int(time.time() * 1000)
        try:
            self.sync_once()
        except Exception:
            if self._runs is not None:  # it answers, so at least nothing is left running
                with contextlib.suppress(TrackingError):
                    self.finish(self._status, end)
            raise
        self.finish(self._status, end)

    def _attempt(self, work: Callable[[], None]) -> bool:
        """Whether it went well. What failed may have half happened, so the next attempt looks at MLflow anew."""
        started = time.perf_counter()
        try:
            work()
            return True
        except Exception as error:  # whatever it is, the search goes on
            self._runs = None
            if not self._warned:
                self._warned = True
                said = str(error) if isinstance(error, (TrackingError, RequestError)) else one_line(repr(error))
                named = said if address(self._uri) in said else f"publishing to MLflow at {address(self._uri)}: {said}"
                with contextlib.suppress(Exception):
                    self._warn(f"{named}; the search goes on, and tinynet sync sends what is missing")
            return False
        finally:
            self.busy_seconds += time.perf_counter() - started

    def _connected(self) -> Runs:
        if self._runs is None:
            runs = Runs(self._uri, self._plan)
            if self._live and runs.parent.info.status not in UNFINISHED:
                runs.client.update_run(runs.parent_id, status="RUNNING")
            self.experiment_id, self.run_id = runs.experiment_id, runs.parent_id
            self.link = link_of(self._uri, runs.experiment_id, add_view(runs))
            self._runs = runs
        return self._runs

    def _news(self) -> list[_News]:
        """Every watched trial that has started and is not all sent; listings first, since storage may be far away."""
        with self._lock:
            waiting = [candidate for run, candidate in self._watched.items() if run not in self._complete]
        begun = set(self._store.folder.names("trials"))
        results = self._store.results([candidate.run for candidate in waiting])
        news = []
        for candidate in waiting:
            result = results.get(candidate.run)
            epochs = result["epochs"] if result else self._store.progress(candidate.run) if candidate.run in begun else []
            if result or epochs:
                news.append(_News(candidate, epochs, result))
        return news

    def _publish(self, runs: Runs, news: _News) -> None:
        candidate, epochs, result = news
        known = trial_key(self._plan, candidate.run) in runs.children
        tags = trial_tags(self._plan, candidate, runs.parent_id)
        run = runs.ensure(trial_name(candidate), begun_ms(epochs, result), tags)
        if not known:
            self._concluded = None  # its labels and frontier tag are still to come
        if result and run.info.status in STATUS.values():
            self._complete.add(candidate.run)  # the status is the last that is sent
            return
        sent = self._sent.setdefault(run.info.run_id, _Sent())
        new = epochs[sent.epochs :]
        points = epoch_points(new) + (result_points(result) if result else [])
        if not sent.figures:
            runs.log(run, trial_points(self._plan, candidate) + points, trial_params(candidate))
        elif points:
            self._reopen(runs, run)
            runs.log(run, points)
        self.epochs_sent += len(new)
        sent.epochs, sent.figures = len(epochs), True
        if result:
            runs.log(run, tags=result_tags(result))
            runs.client.set_terminated(run.info.run_id, STATUS[result["status"]], ended_ms(result))
            self._complete.add(candidate.run)

    def _reopen(self, runs: Runs, run: "Run") -> None:
        """A trial that an earlier driver left as killed has gone on."""
        if run.info.status not in UNFINISHED:
            runs.reopen(run)
