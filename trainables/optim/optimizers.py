"""Optimizers by name, the moving average of weights, and the batch-norm statistics of a step.

Called by the training loop and by checkpoints.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainables.optim.flat import FlatBuffers
from trainables.optim.rmsprop import RMSpropTF
from trainables.recipe import Recipe


def _rmsprop_tf(groups: Any, lr: float, fused: bool) -> torch.optim.Optimizer:
    return RMSpropTF(groups, lr=lr, alpha=0.9, momentum=0.9, eps=1e-3)


def _rmsprop(groups: Any, lr: float, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(groups, lr=lr, alpha=0.9, momentum=0.9, eps=1e-3, foreach=False)


def _sgd(groups: Any, lr: float, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=fused, foreach=False)


def _adamw(groups: Any, lr: float, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=lr, fused=fused, foreach=False)


# torch's foreach loops are disabled, so that a piece of the flat buffers stays in the cache for all
# operations of an optimizer step.
OPTIMIZERS: dict[str, Callable[[Any, float, bool], torch.optim.Optimizer]] = {
    "rmsprop_tf": _rmsprop_tf,
    "rmsprop": _rmsprop,
    "sgd": _sgd,
    "adamw": _adamw,
}


def make_optimizer(
    recipe: Recipe, model: nn.Module, flat: FlatBuffers | None = None
) -> torch.optim.Optimizer:
    """Create the recipe's optimizer, without weight decay on biases and batch-norm parameters.

    Args:
        flat: the model's flat buffers; without them, each parameter is updated separately.
    """
    if flat is not None:
        decayed, plain = flat.pieces()
    else:
        trained = [p for p in model.parameters() if p.requires_grad]
        decayed, plain = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return OPTIMIZERS[recipe.optimizer](
        [group for group in groups if group["params"]], recipe.peak_lr, flat is not None
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def float_state(model: nn.Module) -> dict[str, Tensor]:
    """Floating-point parameters and buffers by name, sharing the model's storage."""
    return {
        name: tensor.detach()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }


class Average:
    """Exponential moving average of parameters and batch-norm statistics.

    Each update is one operation per flat buffer.
    """

    def __init__(self, model: nn.Module, flat: FlatBuffers) -> None:
        self._model, self._live = model, [flat.parameters, flat.others]
        self._kept = [tensor.clone() for tensor in self._live]

    def update(self, decay: float) -> None:
        for kept, live in zip(self._kept, self._live, strict=True):
            kept.lerp_(live, 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the model holds the averaged values; its own are restored on exit."""
        own = [tensor.clone() for tensor in self._live]
        _copy_all(self._live, self._kept)
        try:
            yield
            # ``load`` writes new averaged values into the model inside this context.
            _copy_all(self._kept, self._live)
        finally:
            _copy_all(self._live, own)

    def state(self) -> dict[str, Tensor]:
        """Copies of the averaged values by name."""
        with self.applied():
            return {name: tensor.clone() for name, tensor in float_state(self._model).items()}

    def load(self, values: dict[str, Tensor]) -> None:
        """Replace the averaged values by the given ones, by name."""
        with self.applied():
            for name, tensor in float_state(self._model).items():
                tensor.copy_(values[name])


def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


class StepSums:
    """Sums the loss and batch norm's running statistics over a step's micro-batches and ranks.

    torch updates the statistics once per micro-batch and separately on each rank, so they would
    depend on how a step is divided. Here every micro-batch starts from the statistics at the start
    of the step, and the step's result is the mean of the updated statistics.
    """

    def __init__(self, statistics: Tensor, micro_batches: int) -> None:
        self._live, self._count = statistics, micro_batches
        self._start = statistics.clone()
        self._sums = statistics.new_zeros(len(statistics) + 1)

    def begin(self) -> None:
        """Save the statistics at the start of a step."""
        self._start.copy_(self._live)
        self._sums.zero_()

    def collect(self, loss: Tensor) -> None:
        """Add the results of one micro-batch."""
        self._sums[-1].add_(loss)
        if self._count > 1:
            self._sums[:-1].add_(self._live)
            self._live.copy_(self._start)

    def finish(self, all_sum: Callable[[Tensor], Tensor]) -> Tensor:
        """Store the mean statistics, after the step's last micro-batch.

        Args:
            all_sum: sums a tensor over the ranks.

        Returns:
            The mean loss, a scalar.
        """
        means = all_sum(self._sums) / self._count
        if self._count > 1:
            self._live.copy_(means[:-1])
        return means[-1]
