"""What a training leaves: the figures of its epochs and its result, as typed values and as JSON.

Written by the training and by the driver for trials that hang, read by the driver, the publishers and the command line.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from search_spaces import Details, Network
from trainables.execution import Execution
from trainables.run_name import RunName
from trainables.storage.documents import (
    LAST_DATE,
    LONGEST_TEXT,
    MOST_EPOCHS,
    DocumentError,
    typed,
)

SCHEMA = 1
FINISHED, FAILED = "finished", "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkFigures:
    """The real network's figures, as candidates, results and MLflow have them.

    Attributes:
        details: the family's own figures (stem, channels and repeats per stage, ...).
        resolution: pixels; macs: multiply-adds; activations: elements of all feature maps.
        activation_bytes: peak memory of feature maps in inference at batch 1, float32.
        c: macs over the baseline's for the same number of classes.
    """

    details: Details
    resolution: int
    macs: int
    params: int
    activations: int
    activation_bytes: int
    c: float
    num_classes: int

    @classmethod
    def of(cls, network: Network) -> "NetworkFigures":
        return cls(
            details=network.details,
            resolution=network.resolution,
            macs=network.macs,
            params=network.params,
            activations=network.activations,
            activation_bytes=network.activation_bytes,
            c=network.c,
            num_classes=network.num_classes,
        )

    def to_json(self) -> dict[str, Any]:
        """The details stand beside the figures."""
        figures = {name: getattr(self, name) for name in self.__slots__ if name != "details"}
        return {**self.details, **figures}

    @classmethod
    def from_json(cls, values: Any, what: str = "network") -> "NetworkFigures":
        """Raises DocumentError where a figure is missing or of another type; ``what`` is as in ``typed``."""
        if not isinstance(values, Mapping):
            raise DocumentError(f"{what} is not an object")
        details = {key: value for key, value in values.items() if key not in cls.__slots__}
        # A family of a user's own may have any details: they are shown, and not computed with.
        return replace(typed(cls, {**values, "details": {}}, what), details=details)


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRecord:
    """The figures of one epoch.

    Attributes:
        epoch: 1 is the first; ts: its end, in ms since 1970; seconds: its training and evaluation.
        lr: learning rate of the epoch's last step.
        top1, top5, val_loss: of the weights that rank (percent, and a loss); ``_raw`` and ``_ema`` of both kinds of weights.
        images_per_s: training images per second.
    """

    epoch: int
    ts: int
    lr: float
    train_loss: float
    top1: float
    top5: float
    val_loss: float
    top1_raw: float
    top5_raw: float
    val_loss_raw: float
    top1_ema: float
    top5_ema: float
    val_loss_ema: float
    seconds: float
    images_per_s: float

    def __post_init__(self) -> None:
        if not 0 <= self.ts < 1000 * LAST_DATE or self.seconds < 0:
            raise ValueError("ts or seconds: not a time")

    def to_json(self) -> dict[str, int | float]:
        return asdict(self)


def epochs_from(values: Any) -> list[EpochRecord]:
    """A training's record: every epoch from the first on.

    Raises:
        DocumentError: it is not one.
    """
    if not isinstance(values, list) or len(values) > MOST_EPOCHS:
        raise DocumentError("epochs is not a list of epochs")
    epochs = [typed(EpochRecord, row, f"epoch {n}") for n, row in enumerate(values, 1)]
    for number, record in enumerate(epochs, 1):
        if record.epoch != number:
            raise DocumentError(f"epoch {number} is not in its place")
    return epochs


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultSummary:
    """A result without its epochs, which for ten thousand trials would be gigabytes.

    Attributes:
        top1: of the last epoch, in percent; None where the trial failed.
        started, ended: seconds since 1970; first_ts: the first epoch's end in ms, None before there is one.
        seconds: of all epochs together.
    """

    run: RunName
    status: Literal["finished", "failed"]
    reason: str | None
    detail: str | None
    top1: float | None
    c: float
    macs: int
    params: int
    resolution: int
    started: float
    ended: float
    epochs_done: int
    seconds: float
    first_ts: int | None

    @property
    def finished(self) -> bool:
        return self.status == FINISHED


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """The result of one trial for one number of epochs, written once.

    Attributes:
        rdw, network: what was trained; workers: data-parallel processes.
        execution: how it was computed, None where it was the default.
        started, ended: of the last try, in seconds since 1970.
        reason, detail: why it failed; None where it did not.
        metrics: the last epoch's figures, None where it failed.
    """

    run: RunName
    kind: str
    space: str
    rdw: tuple[float, float, float]
    network: NetworkFigures
    seed: int
    workers: int
    execution: Execution | None
    host: str
    started: float
    ended: float
    status: Literal["finished", "failed"]
    reason: str | None
    detail: str | None
    metrics: EpochRecord | None
    epochs: Sequence[EpochRecord]

    def __post_init__(self) -> None:
        if not (0 <= self.started < LAST_DATE and 0 <= self.ended < LAST_DATE):
            raise ValueError("started or ended: not a time")
        if max(len(self.reason or ""), len(self.detail or "")) > LONGEST_TEXT:
            raise ValueError("reason or detail: more than a page")
        if self.finished and (self.metrics is None or not self.epochs):
            raise ValueError("epochs: it is finished without an epoch")

    @property
    def finished(self) -> bool:
        return self.status == FINISHED

    @property
    def top1(self) -> float | None:
        """Of the last epoch, in percent; None where the trial failed."""
        return self.metrics.top1 if self.finished and self.metrics else None

    @property
    def seconds(self) -> float:
        """Training and evaluation of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)

    def summary(self) -> ResultSummary:
        network = self.network
        return ResultSummary(
            run=self.run,
            status=self.status,
            reason=sys.intern(self.reason) if self.reason else None,
            detail=self.detail,
            top1=self.top1,
            c=network.c,
            macs=network.macs,
            params=network.params,
            resolution=network.resolution,
            started=self.started,
            ended=self.ended,
            epochs_done=len(self.epochs),
            seconds=self.seconds,
            first_ts=self.epochs[0].ts if self.epochs else None,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "id": self.run.id,
            "run": self.run,
            "kind": self.kind,
            "space": self.space,
            "rdw": list(self.rdw),
            "network": self.network.to_json(),
            "budget_epochs": self.run.epochs,
            "seed": self.seed,
            "workers": self.workers,
            "execution": asdict(self.execution) if self.execution else {},
            "host": self.host,
            "started": self.started,
            "ended": self.ended,
            "status": self.status,
            "reason": self.reason,
            "detail": self.detail,
            "metrics": self.metrics.to_json() if self.metrics else {},
            "epochs": [epoch.to_json() for epoch in self.epochs],
        }

    @classmethod
    def from_json(cls, values: Any, run: str) -> "TrialResult":
        """Read the result of a run.

        Raises:
            DocumentError: it is damaged, or the result of another run.
        """
        if not isinstance(values, Mapping) or values.get("run") != run:
            raise DocumentError("it is not a result of this trial")
        rdw = values.get("rdw")
        metrics, execution = values.get("metrics"), values.get("execution")
        made = {
            "run": RunName.parse(run),
            "rdw": tuple(rdw) if isinstance(rdw, list) else rdw,
            "network": NetworkFigures.from_json(values.get("network")),
            "execution": None if execution == {} else typed(Execution, execution, "execution"),
            "metrics": None if metrics == {} else typed(EpochRecord, metrics, "metrics"),
            "epochs": epochs_from(values.get("epochs")),
        }
        return typed(cls, {**values, **made})
