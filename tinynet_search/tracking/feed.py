"""Reads the progress of trainings from storage and sends it to their MLflow runs.

Each process sends an epoch once; sending it again changes nothing. Used by ``Publisher`` and
``JobPublisher``.
"""

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

# Every epoch has this metric, so its history shows which epochs a run has, and of which training.
EPOCH_METRIC = "epoch_seconds"


class TrainingUpdate(NamedTuple):
    """The state in storage of a training that has started.

    Attributes:
        candidate: the training.
        epochs: its epochs so far.
        result: its result, None while it trains.
        checkpoint: the checkpoint from which the epochs were read.
    """

    candidate: Candidate
    epochs: Sequence[EpochRecord]
    result: TrialResult | None
    checkpoint: str = ""


class RunContents(NamedTuple):
    """The content of a training's run: what is known at its start, and its curves so far."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    figures: Sequence[Point]
    curves: Sequence[Point]


class ProgressReader:
    """Reads what is new in storage.

    It lists results and trials, and reads each result once, and the progress at new checkpoints.
    """

    def __init__(self, store: SearchStore) -> None:
        self._store = store
        self._sent_checkpoints: dict[str, str] = {}

    def update(
        self, waiting: Mapping[RunName, Candidate], faults: list[Exception]
    ) -> Iterator[TrainingUpdate]:
        """Yield the trainings that have changed since ``mark_sent``.

        Args:
            waiting: trainings by run name.
            faults: damaged results are appended to this list as errors.
        """
        finished = self._store.finished()
        for run in sorted(finished & waiting.keys()):
            try:
                result = self._store.result(run)
            except RequestError as error:
                faults.append(error)
                continue
            if result is not None:
                yield TrainingUpdate(waiting[run], result.epochs, result)
        started = RunName.parsed(self._store.folder.names("trials"))
        for run in sorted((started - finished) & waiting.keys()):
            if update := self._progress(waiting[run]):
                yield update

    def mark_sent(self, update: TrainingUpdate) -> None:
        """Record that an update was sent, so that it is not yielded again."""
        if update.result:
            self._sent_checkpoints.pop(update.candidate.run, None)
        elif update.checkpoint:
            self._sent_checkpoints[update.candidate.run] = update.checkpoint

    def _progress(self, candidate: Candidate) -> TrainingUpdate | None:
        run = candidate.run
        folder = self._store.folder.sub(f"trials/{run}")
        names = checkpoints(folder)
        if not names or names[-1] == self._sent_checkpoints.get(run):
            return None
        complete = folder.exists(f"{names[-1]}/{PROGRESS}")
        epochs = self._store.progress(run)
        if not epochs:
            return None
        return TrainingUpdate(candidate, epochs, None, names[-1] if complete else "")


@dataclass
class _Sent:
    """What has been sent to a run.

    Attributes:
        stamps: time stamps by epoch, sent by any process.
        epochs: number of epochs that this process has sent.
        figures: whether this process has sent the figures of the network.
    """

    stamps: dict[int, int] = field(default_factory=dict)
    epochs: int = 0
    figures: bool = False


class Feed:
    """Sends trainings to runs. Must be used within ``mlflow_access``.

    Attributes:
        epochs: number of epochs sent so far.
    """

    def __init__(self) -> None:
        self._sent: dict[str, _Sent] = {}
        self.epochs = 0

    def differs(self, runs: Runs, child: Child, update: TrainingUpdate) -> bool:
        """Whether the run contains a different training from the one in storage.

        This is the case if epochs were repeated, or the trial was trained again from scratch.
        """
        if child.ended:
            return not update.result or (child.status, child.end) != (
                STATUS[update.result.status],
                ended_ms(update.result),
            )
        sent = self._sent.get(child.run_id)
        if sent is None:
            history = (
                runs.client.get_metric_history(child.run_id, EPOCH_METRIC) if child.params else []
            )
            sent = self._sent[child.run_id] = _Sent(
                {point.step: point.timestamp for point in history}
            )
            if len(sent.stamps) < len(history):
                return True
        stamps = _stamps(update.epochs)
        return any(
            stamps.get(epoch, None if update.result else ts) != ts
            for epoch, ts in sent.stamps.items()
        )

    def send(
        self,
        runs: Runs,
        child: Child,
        contents: RunContents,
        update: TrainingUpdate,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Send what the run does not have yet.

        New epochs after the first call reopen a run that had ended, since its training continues.
        """
        sent = self._sent.setdefault(child.run_id, _Sent())
        points = [point for point in contents.curves if point.step > sent.epochs]
        points += result_points(update.result) if update.result else []
        # If the response is lost, MLflow may have stored them nevertheless.
        sent.stamps |= _stamps(update.epochs)
        if not sent.figures:
            runs.log(child, [*contents.figures, *points], contents.params, tags)
        elif points or tags:
            if child.status not in UNFINISHED and not update.result:
                runs.reopen(child)
            runs.log(child, points, tags=tags)
        self.epochs += max(0, len(update.epochs) - sent.epochs)
        sent.epochs, sent.figures = max(sent.epochs, len(update.epochs)), True

    def end(self, runs: Runs, child: Child, result: TrialResult) -> None:
        runs.end(child, STATUS[result.status], ended_ms(result))
        self.forget(child)

    def forget(self, child: Child) -> None:
        self._sent.pop(child.run_id, None)


def _stamps(epochs: Sequence[EpochRecord]) -> dict[int, int]:
    return {epoch.epoch: epoch.ts for epoch in epochs}
