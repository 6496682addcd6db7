"""Sums an epoch's losses and detects divergence without synchronising with the GPU at every step.

Called by the training loop. A GPU may run some steps ahead of the losses that have been read.
"""

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor

# Maximum number of steps between a GPU's current step and the last loss that was read.
MAX_STEPS_AHEAD = 4
# A finite loss above this multiple of the loss of guessing (the logarithm of the number of classes)
# counts as diverged too.
DIVERGENCE_FACTOR = 1000.0


class Diverged(Exception):  # noqa: N818 - an outcome of the training, not a program error
    """The loss of a step (0 is the epoch's first) is not finite or exceeds the limit."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"loss {loss:g} at step {step}")
        self.step, self.loss = step, loss


class LossWatch:
    """Running sum of an epoch's losses; raises ``Diverged`` as soon as one is out of bounds.

    On a CPU a loss is checked when it is added, on a GPU at most ``MAX_STEPS_AHEAD`` steps later.

    Args:
        classes: number of classes, which determines the limit.
        total: the sum so far, for an epoch that is resumed in the middle.
    """

    def __init__(self, classes: int, device: torch.device, total: float = 0.0) -> None:
        self._limit = DIVERGENCE_FACTOR * math.log(max(classes, 2))
        self._gpu = device.type == "cuda"
        self._pending: deque[tuple[int, Tensor, Any]] = deque()
        self.total = total

    def add(self, step: int, loss: Tensor) -> None:
        if not self._gpu:
            self._check(step, loss.item())
            return
        value = torch.empty((), pin_memory=True).copy_(loss, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self._pending.append((step, value, done))
        if len(self._pending) > MAX_STEPS_AHEAD:
            self._check_oldest()

    def finish(self) -> float:
        """Check all remaining losses and return the sum."""
        while self._pending:
            self._check_oldest()
        return self.total

    def _check_oldest(self) -> None:
        step, value, done = self._pending.popleft()
        done.synchronize()
        self._check(step, value.item())

    def _check(self, step: int, loss: float) -> None:
        if not math.isfinite(loss) or loss > self._limit:
            raise Diverged(step, loss)
        self.total += loss
