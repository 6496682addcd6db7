"""What storage holds of trainings, sent to their runs: each epoch once a process, and sending again changes nothing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tinynet_search.store import Candidate, SearchStore
from tinynet_search.tracking.projection import STATUS, Point, ended_ms, result_points, result_tags
from tinynet_search.tracking.runs import UNFINISHED, Runs

if TYPE_CHECKING:
    from mlflow.entities import Run


class News(NamedTuple):
    """What storage holds of a training that has started."""

    candidate: Candidate
    epochs: list[dict[str, Any]]
    result: dict[str, Any] | None


class Sheet(NamedTuple):
    """A training as a run: what is known of it from the start, and its curves so far."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    figures: Sequence[Point]
    curves: Sequence[Point]


@dataclass
class _Sent:
    """What a run has been told by this process."""

    epochs: int = 0
    figures: bool = False


def read_news(store: SearchStore, candidates: Iterable[Candidate]) -> list[News]:
    """Every training that has started; listings first, since storage may be far away.

    Raises:
        RequestError: a result is damaged.
    """
    waiting = list(candidates)
    begun = set(store.folder.names("trials"))
    results = store.results([candidate.run for candidate in waiting])
    news = []
    for candidate in waiting:
        result = results.get(candidate.run)
        epochs = result["epochs"] if result else store.progress(candidate.run) if candidate.run in begun else []
        if result or epochs:
            news.append(News(candidate, epochs, result))
    return news


class Feed:
    """To be used within ``reaching``.

    Attributes:
        epochs: sent so far.
    """

    def __init__(self) -> None:
        self._sent: dict[str, _Sent] = {}
        self.epochs = 0

    def tell(self, runs: Runs, run: "Run", sheet: Sheet, news: News) -> None:
        """Send what the run does not know yet. New epochs after the first call reopen a run that had ended: it has gone on."""
        sent = self._sent.setdefault(run.info.run_id, _Sent())
        points = [point for point in sheet.curves if point.step > sent.epochs]
        points += result_points(news.result) if news.result else []
        if not sent.figures:
            runs.log(run, [*sheet.figures, *points], sheet.params)
        elif points:
            if run.info.status not in UNFINISHED:
                runs.reopen(run)
            runs.log(run, points)
        self.epochs += max(0, len(news.epochs) - sent.epochs)
        sent.epochs, sent.figures = len(news.epochs), True

    def end(self, runs: Runs, run: "Run", result: Mapping[str, Any]) -> None:
        """The status is the last that is sent: a run that has it has everything."""
        runs.log(run, tags=result_tags(result))
        runs.client.set_terminated(run.info.run_id, STATUS[result["status"]], ended_ms(result))
