"""How fast a network trains here: its own training, begun in a folder of its own and asked to end after some seconds."""

import logging
import tempfile
import time

from trainables.execution import Execution
from trainables.result import EpochRecord
from trainables.spec import TrialSpec
from trainables.stopping import Stopped
from trainables.trial import run_trial

# Steps that are not counted: memory is asked for, kernels are chosen and compiled.
WARM = 5


class _Clock:
    """The trial's reporter and its stop in one: the times at which its steps begin, until enough are there or an epoch is over."""

    rank, world_size = 0, 1

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun: list[float] = []
        self._of_epoch: float | None = None

    def report(self, record: EpochRecord) -> None:
        self._of_epoch = record.images_per_s

    def __call__(self) -> bool:
        self._begun.append(time.perf_counter())
        return self._of_epoch is not None or (
            len(self._begun) > WARM + 1 and self._begun[-1] - self._begun[WARM] >= self._seconds
        )

    def images_per_s(self, batch: int) -> float:
        if self._of_epoch is not None:
            return self._of_epoch
        return batch * (len(self._begun) - 1 - WARM) / (self._begun[-1] - self._begun[WARM])


def images_per_s(spec: TrialSpec, seconds: float, execution: Execution | None = None) -> float:
    """Images a second that one worker trains, reading them included; evaluation and checkpoints are left out.

    Args:
        seconds: that the steps which count take at least, unless an epoch is over before.

    Raises:
        RequestError: the data cannot be read; RuntimeError: the training failed, and says why.
    """
    clock = _Clock(seconds)
    with tempfile.TemporaryDirectory(prefix="tinynet-speed-") as scratch:
        logging.getLogger("tinynet").setLevel(logging.ERROR)
        try:
            result = run_trial(spec, scratch, clock, execution, clock)
        except Stopped:
            return clock.images_per_s(spec.recipe.batch)
    if not result.finished:
        raise RuntimeError(f"{result.reason}: {result.detail}")
    return clock.images_per_s(spec.recipe.batch)
