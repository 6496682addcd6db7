"""The publisher of a search: projects its directory onto MLflow from a thread of the driver."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tinynet_search.store import Candidate, SearchStore
from tinynet_search.tracking.background import Background
from tinynet_search.tracking.conclusion import Conclusion, write_conclusion
from tinynet_search.tracking.connection import reaching
from tinynet_search.tracking.feed import Feed, News, Sheet, read_news
from tinynet_search.tracking.projection import (
    STATUS,
    begun_ms,
    created_ms,
    epoch_points,
    figure_points,
    trial_key,
    trial_name,
    trial_params,
    trial_tags,
)
from tinynet_search.tracking.runs import UNFINISHED, SearchRuns
from tinynet_search.tracking.view import add_view, link_of


class Publisher(Background[SearchRuns]):
    """Publishes one search; see ``Background``.

    Attributes:
        experiment_id, run_id: of the search in MLflow, once reached.
    """

    def __init__(self, store: SearchStore, plan: Mapping[str, Any], uri: str, *, warn: Callable[[str], None]) -> None:
        super().__init__(uri, "search", warn)
        self._store, self._plan = store, plan
        self._lock = threading.Lock()
        self._watched: dict[str, Candidate] = {}
        self._conclusion: Conclusion | None = None
        self._concluded: Conclusion | None = None
        self._feed = Feed()
        self._complete: set[str] = set()
        self.experiment_id: str | None = None
        self.run_id: str | None = None

    @property
    def epochs_sent(self) -> int:
        return self._feed.epochs

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

    def sync_once(self) -> None:
        """Send what is new.

        Raises:
            TrackingError: MLflow does not answer, or refuses.
            RequestError: a file of the search directory is damaged.
        """
        with reaching(self._uri):
            runs = self._connected()
        with self._lock:
            waiting = [candidate for run, candidate in self._watched.items() if run not in self._complete]
        news = read_news(self._store, waiting)
        with reaching(self._uri):
            for item in news:
                self._publish(runs, item)
            conclusion = self._conclusion
            if conclusion is not None and conclusion is not self._concluded:
                runs.refresh()
                write_conclusion(runs, conclusion)
                self._concluded = conclusion

    def _connect(self) -> SearchRuns:
        runs = SearchRuns(self._uri, self._plan)
        if self._live and runs.parent.info.status not in UNFINISHED:
            runs.client.update_run(runs.parent_id, status="RUNNING")
        self.experiment_id, self.run_id = runs.experiment_id, runs.parent_id
        self.link = link_of(self._uri, runs.experiment_id, add_view(runs))
        return runs

    def _publish(self, runs: SearchRuns, news: News) -> None:
        candidate, epochs, result = news
        known = trial_key(self._plan, candidate.run) in runs.children
        sheet = Sheet(
            trial_name(candidate),
            trial_tags(self._plan, candidate, runs.parent_id),
            trial_params(candidate),
            figure_points(candidate, created_ms(self._plan)),
            epoch_points(epochs),
        )
        run = runs.ensure(sheet.name, begun_ms(epochs, result), sheet.tags)
        if not known:
            self._concluded = None  # its labels and frontier tag are still to come
        if not (result and run.info.status in STATUS.values()):
            self._feed.tell(runs, run, sheet, news)
            if result:
                self._feed.end(runs, run, result)
        if result:
            self._complete.add(candidate.run)
