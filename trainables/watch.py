"""Watching a loss without waiting for it: a GPU works some steps ahead, and is asked for losses that are long done."""

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor

# Steps a GPU may be ahead of what has been looked at.
AHEAD = 4
# Times the loss of guessing (the logarithm of the number of classes) at which a finite loss has diverged too.
FAR = 1000.0


class Diverged(Exception):  # noqa: N818 - the training's end, not a fault of the program
    """The loss of a step (0 is the epoch's first) is no number, or out of all proportion."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"loss {loss:g} at step {step}")
        self.step, self.loss = step, loss


class LossWatch:
    """The sum of an epoch's losses; raises ``Diverged`` as soon as one is out of bounds.

    On a CPU a loss is looked at when it is added, on a GPU at most ``AHEAD`` steps later.

    Args:
        total: what an epoch that was left in the middle has summed up.
    """

    def __init__(self, classes: int, device: torch.device, total: float = 0.0) -> None:
        self._limit = FAR * math.log(max(classes, 2))
        self._gpu = device.type == "cuda"
        self._waiting: deque[tuple[int, Tensor, Any]] = deque()
        self.total = total

    def add(self, step: int, loss: Tensor) -> None:
        if not self._gpu:
            self._look(step, loss.item())
            return
        value = torch.empty((), pin_memory=True).copy_(loss, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self._waiting.append((step, value, done))
        if len(self._waiting) > AHEAD:
            self._next()

    def finish(self) -> float:
        """The sum, once every loss has been looked at."""
        while self._waiting:
            self._next()
        return self.total

    def _next(self) -> None:
        step, value, done = self._waiting.popleft()
        done.synchronize()
        self._look(step, value.item())

    def _look(self, step: int, loss: float) -> None:
        if not math.isfinite(loss) or loss > self._limit:
            raise Diverged(step, loss)
        self.total += loss
