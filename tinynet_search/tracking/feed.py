"""What storage holds of trainings, sent to their runs: each epoch once a process, and sending again changes nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from search_spaces.errors import RequestError
from tinynet_search.store.directory import Candidate, SearchStore
from tinynet_search.tracking.projection import STATUS, Point, ended_ms, result_points
from tinynet_search.tracking.runs import UNFINISHED, Child, Runs
from trainables.result import EpochRecord, TrialResult
from trainables.run_name import RunName
from trainables.trial_folder import PROGRESS, checkpoints

# Every epoch has this metric, so its history tells which epochs a run has been told, and of which training.
TELLTALE = "epoch_seconds"


class News(NamedTuple):
    """What storage holds of a training that has started; ``at`` is the checkpoint it was read from."""

    candidate: Candidate
    epochs: Sequence[EpochRecord]
    result: TrialResult | None
    at: str = ""


class Sheet(NamedTuple):
    """A training as a run: what is known of it from the start, and its curves so far."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    figures: Sequence[Point]
    curves: Sequence[Point]


class ProgressReader:
    """Reads what is new: a listing of results and one of trials, then results once, and progress at new checkpoints."""

    def __init__(self, store: SearchStore) -> None:
        self._store = store
        self._told: dict[str, str] = {}

    def news(self, waiting: Mapping[RunName, Candidate], faults: list[Exception]) -> Iterator[News]:
        """Of trainings by run name, those that have moved on since they were ``told``; a damaged result is a fault."""
        finished = self._store.finished()
        for run in sorted(finished & waiting.keys()):
            try:
                result = self._store.result(run)
            except RequestError as error:
                faults.append(error)
                continue
            if result is not None:
                yield News(waiting[run], result.epochs, result)
        begun = RunName.parsed(self._store.folder.names("trials"))
        for run in sorted((begun - finished) & waiting.keys()):
            if news := self._progress(waiting[run]):
                yield news

    def told(self, news: News) -> None:
        """It was sent, and is no news any more."""
        if news.result:
            self._told.pop(news.candidate.run, None)
        elif news.at:
            self._told[news.candidate.run] = news.at

    def _progress(self, candidate: Candidate) -> News | None:
        run = candidate.run
        folder = self._store.folder.sub(f"trials/{run}")
        names = checkpoints(folder)
        if not names or names[-1] == self._told.get(run):
            return None
        whole = folder.exists(f"{names[-1]}/{PROGRESS}")
        epochs = self._store.progress(run)
        return News(candidate, epochs, None, names[-1] if whole else "") if epochs else None


@dataclass
class _Sent:
    """What a run has been told: time stamps by epoch, by whomever, and the number of epochs by this process."""

    stamps: dict[int, int] = field(default_factory=dict)
    epochs: int = 0
    figures: bool = False


class Feed:
    """To be used within ``reaching``.

    Attributes:
        epochs: sent so far.
    """

    def __init__(self) -> None:
        self._sent: dict[str, _Sent] = {}
        self.epochs = 0

    def differs(self, runs: Runs, child: Child, news: News) -> bool:
        """Whether the run tells of another training than storage: epochs that were done again, a trial trained anew."""
        if child.ended:
            return not news.result or (child.status, child.end) != (
                STATUS[news.result.status],
                ended_ms(news.result),
            )
        sent = self._sent.get(child.run_id)
        if sent is None:
            history = runs.client.get_metric_history(child.run_id, TELLTALE) if child.params else []
            sent = self._sent[child.run_id] = _Sent(
                {point.step: point.timestamp for point in history}
            )
            if len(sent.stamps) < len(history):
                return True
        stamps = _stamps(news.epochs)
        return any(
            stamps.get(epoch, None if news.result else ts) != ts
            for epoch, ts in sent.stamps.items()
        )

    def tell(
        self,
        runs: Runs,
        child: Child,
        sheet: Sheet,
        news: News,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Send what the run does not know yet. New epochs after the first call reopen a run that had ended: it has gone on."""
        sent = self._sent.setdefault(child.run_id, _Sent())
        points = [point for point in sheet.curves if point.step > sent.epochs]
        points += result_points(news.result) if news.result else []
        # Where the answer is lost they may be there all the same.
        sent.stamps |= _stamps(news.epochs)
        if not sent.figures:
            runs.log(child, [*sheet.figures, *points], sheet.params, tags)
        elif points or tags:
            if child.status not in UNFINISHED and not news.result:
                runs.reopen(child)
            runs.log(child, points, tags=tags)
        self.epochs += max(0, len(news.epochs) - sent.epochs)
        sent.epochs, sent.figures = max(sent.epochs, len(news.epochs)), True

    def end(self, runs: Runs, child: Child, result: TrialResult) -> None:
        runs.end(child, STATUS[result.status], ended_ms(result))
        self.forget(child)

    def forget(self, child: Child) -> None:
        self._sent.pop(child.run_id, None)


def _stamps(epochs: Sequence[EpochRecord]) -> dict[int, int]:
    return {epoch.epoch: epoch.ts for epoch in epochs}
