"""RMSProp with TensorFlow's update rule, in few passes over memory.

Created by ``trainables.optim.optimizers.make_optimizer``.
"""

from collections.abc import Callable
from typing import Any

import torch


class RMSpropTF(torch.optim.Optimizer):
    """Section 4.1's optimizer.

    The mean square is initialised to one, eps is inside the square root, and the learning rate is
    inside the momentum. The steps are the same as those of timm's ``RMSpropTF`` (a test compares
    them), in seven passes over memory instead of eleven and without allocations: on flat buffers
    the passes determine the cost of a step.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        alpha: float = 0.9,
        momentum: float = 0.9,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "alpha": alpha,
                "momentum": momentum,
                "eps": eps,
                "weight_decay": weight_decay,
            },
        )
        self._scratch: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)

    def _step(self, parameter: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["square_avg"], state["momentum_buffer"] = (
                torch.ones_like(parameter),
                torch.zeros_like(parameter),
            )
        square, buffer = state["square_avg"], state["momentum_buffer"]
        decayed, scratch = self._scratch_pair(parameter)
        if group["weight_decay"]:
            grad = torch.add(grad, parameter, alpha=group["weight_decay"], out=decayed)
        square.lerp_(torch.mul(grad, grad, out=scratch), 1 - group["alpha"])
        inverse = torch.add(square, group["eps"], out=scratch).rsqrt_()
        buffer.mul_(group["momentum"]).addcmul_(grad, inverse, value=group["lr"])
        parameter.sub_(buffer)

    def _scratch_pair(self, parameter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two temporary tensors, shared by all parameters of this shape, stride and device.

        Sharing is safe because parameters are updated one after another.
        """
        like = (parameter.shape, parameter.stride(), parameter.device)
        if like not in self._scratch:
            self._scratch[like] = torch.empty_like(parameter), torch.empty_like(parameter)
        return self._scratch[like]
