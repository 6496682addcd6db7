"""Optimizers by name, and the moving average of weights."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trainables.recipe import Recipe


def _rmsprop_tf(groups: Any, lr: float) -> torch.optim.Optimizer:
    """RMSProp the TensorFlow way: mean square starts at one, eps inside the root, learning rate inside the momentum."""
    from timm.optim.rmsprop_tf import RMSpropTF

    return RMSpropTF(groups, lr=lr, alpha=0.9, momentum=0.9, eps=1e-3)


def _rmsprop(groups: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(groups, lr=lr, alpha=0.9, momentum=0.9, eps=1e-3, foreach=True)


def _sgd(groups: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, foreach=True)


def _adamw(groups: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=lr, foreach=True)


OPTIMIZERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "rmsprop_tf": _rmsprop_tf,
    "rmsprop": _rmsprop,
    "sgd": _sgd,
    "adamw": _adamw,
}


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer; weight decay on weights only, none on biases and batch-norm parameters."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return OPTIMIZERS[recipe.optimizer](groups, recipe.lr)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def float_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and floating-point buffers by name, the model's own storage."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


class Average:
    """Exponential moving average over parameters and batch-norm statistics, one fused call a step."""

    def __init__(self, model: nn.Module) -> None:
        self._live = float_state(model)
        self.state = {name: tensor.clone() for name, tensor in self._live.items()}

    def update(self, decay: float) -> None:
        torch._foreach_lerp_(list(self.state.values()), list(self._live.values()), 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def swap(self) -> None:
        """Exchange the average and the model's own values (call twice to evaluate the average)."""
        own = [tensor.clone() for tensor in self._live.values()]
        copy_all(self._live.values(), self.state.values())
        copy_all(self.state.values(), own)


def copy_all(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    torch._foreach_copy_(list(targets), list(sources))  # pyright: ignore[reportPrivateImportUsage]


class MicroBatchStatistics:
    """Running batch-norm statistics of a step are the mean over its micro-batches, on all ranks.

    Torch would instead move them once per micro-batch, on each rank by itself, so that they depended on how a step is
    split. Each micro-batch here starts from the step's statistics; the mean of what they come to is what the step leaves.
    """

    def __init__(self, model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._live = [b for m in norms for b in (m.running_mean, m.running_var) if isinstance(b, Tensor)]
        self._start: list[Tensor] = []
        self._sum: list[Tensor] = []

    def begin(self) -> None:
        self._start = [b.clone() for b in self._live]
        self._sum = [torch.zeros_like(b) for b in self._live]

    def collect(self) -> None:
        """After one micro-batch's forward pass."""
        if not self._live:
            return  # the foreach calls take no empty list
        torch._foreach_add_(self._sum, self._live)  # pyright: ignore[reportPrivateImportUsage]
        copy_all(self._live, self._start)

    def finish(self, micro_batches: int, all_sum: Callable[[Tensor], Tensor]) -> None:
        """After the step's last micro-batch; ``all_sum`` adds a flat tensor over the ranks."""
        if not self._live:
            return
        flat = all_sum(torch.cat([b.flatten() for b in self._sum])) / micro_batches
        parts = flat.split([b.numel() for b in self._live])
        copy_all(self._live, [part.view_as(b) for part, b in zip(parts, self._live, strict=True)])
