"""Measures how fast a network trains on this machine.

It starts the network's own training in a temporary folder and stops it after some seconds.
Called by ``tinynet_search.cluster.estimate``.
"""

import logging
import tempfile
import time

from trainables.execution import Execution
from trainables.result import EpochRecord
from trainables.spec import TrialSpec
from trainables.stopping import Stopped
from trainables.trial import run_trial

# Steps that are not counted: they allocate memory, and select and compile kernels.
WARMUP_STEPS = 5


class _Clock:
    """Reporter and stop condition of the measured trial.

    Records the start time of every step, until enough time has been measured or an epoch has ended.
    """

    rank, world_size = 0, 1

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._starts: list[float] = []
        self._epoch_rate: float | None = None

    def report(self, record: EpochRecord) -> None:
        self._epoch_rate = record.images_per_s

    def __call__(self) -> bool:
        self._starts.append(time.perf_counter())
        if self._epoch_rate is not None:
            return True
        counted = self._starts[WARMUP_STEPS:]
        return len(counted) > 1 and counted[-1] - counted[0] >= self._seconds

    def images_per_s(self, batch: int) -> float:
        if self._epoch_rate is not None:
            return self._epoch_rate
        counted = self._starts[WARMUP_STEPS:]
        return batch * (len(counted) - 1) / (counted[-1] - counted[0])


def images_per_s(spec: TrialSpec, seconds: float, execution: Execution | None = None) -> float:
    """Training images per second of one worker.

    Reading images is included; evaluation and checkpoints are not.

    Args:
        seconds: minimum duration of the counted steps, unless an epoch ends earlier.

    Raises:
        RequestError: the data cannot be read.
        RuntimeError: the training failed; the message contains the reason.
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
