"""Result types of a training: the figures of its network and epochs, as dataclasses and as JSON.

Written by the training, and by the driver for trials that hang; read by the driver, the publishers
and the command line.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from search_spaces import Details, Network
from trainables.execution import Execution
from trainables.run_name import RunName
from trainables.storage.documents import (
    MAX_EPOCHS,
    MAX_TEXT_LENGTH,
    MAX_TIMESTAMP,
    DocumentError,
    typed,
)

SCHEMA = 1
FINISHED, FAILED = "finished", "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkFigures:
    """Figures of the actual network, as stored in candidates, results and MLflow.

    Attributes:
        details: figures specific to the family (stem, channels and repeats per stage, ...).
        resolution: input side in pixels.
        macs: multiply-adds.
        activations: elements of all feature maps.
        activation_bytes: peak memory of feature maps in inference at batch 1, float32.
        c: macs relative to the baseline with the same number of classes.
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
        """One flat object with the details and the figures."""
        figures = {name: getattr(self, name) for name in self.__slots__ if name != "details"}
        return {**self.details, **figures}

    @classmethod
    def from_json(cls, values: Any, what: str = "network") -> "NetworkFigures":
        """Read figures from a JSON object; ``what`` is as in ``typed``.

        Raises:
            DocumentError: a figure is missing or of the wrong type.
        """
        if not isinstance(values, Mapping):
            raise DocumentError(f"{what} is not an object")
        details = {key: value for key, value in values.items() if key not in cls.__slots__}
        # A user-defined family may have any details: they are displayed, not used in computations.
        return replace(typed(cls, {**values, "details": {}}, what), details=details)


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRecord:
    """The figures of one epoch.

    Attributes:
        epoch: number of the epoch; 1 is the first.
        ts: end of the epoch, in ms since 1970.
        lr: learning rate of the epoch's last step.
        top1, top5, val_loss: of the weights that the recipe ranks by (percent, percent, loss); with
            suffix ``_raw`` and ``_ema`` of the raw and averaged weights.
        seconds: duration of training and evaluation.
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
        if not 0 <= self.ts < 1000 * MAX_TIMESTAMP or self.seconds < 0:
            raise ValueError("ts or seconds is not a valid time")

    def to_json(self) -> dict[str, int | float]:
        return asdict(self)


def epochs_from(values: Any) -> list[EpochRecord]:
    """Read the records of a training, one per epoch from the first.

    Raises:
        DocumentError: the value is not such a list.
    """
    if not isinstance(values, list) or len(values) > MAX_EPOCHS:
        raise DocumentError("epochs is not a list of epochs")
    epochs = [typed(EpochRecord, row, f"epoch {n}") for n, row in enumerate(values, 1)]
    for number, record in enumerate(epochs, 1):
        if record.epoch != number:
            raise DocumentError(f"expected epoch {number}, got {record.epoch}")
    return epochs


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultSummary:
    """A result without its epochs, which would take gigabytes for ten thousand trials.

    Attributes:
        top1: of the last epoch, in percent; None if the trial failed.
        started, ended: seconds since 1970.
        seconds: total duration of all epochs.
        first_ts: end of the first epoch in ms since 1970; None if there is none.
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
        rdw, network: the trained network.
        workers: number of data-parallel processes.
        execution: the execution settings; None for the defaults.
        started, ended: of the last attempt, in seconds since 1970.
        reason, detail: why the trial failed; None if it finished.
        metrics: the last epoch's figures; None if the trial failed.
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
        if not (0 <= self.started < MAX_TIMESTAMP and 0 <= self.ended < MAX_TIMESTAMP):
            raise ValueError("started or ended is not a valid time")
        if max(len(self.reason or ""), len(self.detail or "")) > MAX_TEXT_LENGTH:
            raise ValueError(f"reason or detail is longer than {MAX_TEXT_LENGTH} characters")
        if self.finished and (self.metrics is None or not self.epochs):
            raise ValueError("epochs: a finished trial must have metrics and at least one epoch")

    @property
    def finished(self) -> bool:
        return self.status == FINISHED

    @property
    def top1(self) -> float | None:
        """Top-1 of the last epoch in percent; None if the trial failed."""
        return self.metrics.top1 if self.finished and self.metrics else None

    @property
    def seconds(self) -> float:
        """Duration of training and evaluation of all epochs."""
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
            DocumentError: the document is damaged or is the result of a different run.
        """
        if not isinstance(values, Mapping) or values.get("run") != run:
            raise DocumentError("it is not a result of this trial")
        rdw = values.get("rdw")
        metrics, execution = values.get("metrics"), values.get("execution")
        converted = {
            "run": RunName.parse(run),
            "rdw": tuple(rdw) if isinstance(rdw, list) else rdw,
            "network": NetworkFigures.from_json(values.get("network")),
            "execution": None if execution == {} else typed(Execution, execution, "execution"),
            "metrics": None if metrics == {} else typed(EpochRecord, metrics, "metrics"),
            "epochs": epochs_from(values.get("epochs")),
        }
        return typed(cls, {**values, **converted})
