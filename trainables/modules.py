"""Prepares a network's module for training: batch norm, memory layout, compilation and device.

Called by the training loop and by ``tinynet train --eval-only``.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.recipe import Recipe


def pick_device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def prepare_module(model: nn.Module, recipe: Recipe, world_size: int = 1) -> nn.Module:
    """The model in float32 with the recipe's batch-norm settings applied."""
    if recipe.bn_momentum is not None:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = recipe.bn_momentum
    if recipe.sync_bn and world_size > 1:
        from timm.layers.norm_act import convert_sync_batchnorm

        model = convert_sync_batchnorm(model)
    return model.float()


def keep_layout(model: nn.Module) -> None:
    """Convert the gradients of global pooling layers to channels_last, the feature maps' layout.

    Each gradient is one number expanded over a feature map, which autograd lays out contiguously.
    Without the conversion the backward pass of all layers before the pool would use kernels for
    mixed layouts.
    """

    def add_hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        features = inputs[0]
        if isinstance(features, Tensor) and features.requires_grad and features.ndim == 4:
            features.register_hook(
                lambda gradient: gradient.contiguous(memory_format=torch.channels_last)
            )

    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "global_pool":
            module.register_forward_pre_hook(add_hook)


class SelectedOutputs(nn.Module):
    """A network with some of its outputs, in a different order.

    Args:
        network: the network, with outputs (n, classes).
        columns: the chosen outputs, int64 (k,).
    """

    def __init__(self, network: nn.Module, columns: np.ndarray) -> None:
        super().__init__()
        self.network = network
        self.columns: Tensor
        self.register_buffer("columns", torch.from_numpy(columns), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[:, self.columns]


def seed(value: int, device: torch.device) -> None:
    """Seed the generators that a network draws from.

    ``torch.manual_seed`` seeds more generators and takes a tenth of a millisecond.
    """
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)


def compile_module(model: nn.Module) -> nn.Module:
    """The model compiled by TorchInductor for one input shape.

    It draws the same random numbers as the uncompiled model. The cache is reset first: otherwise a
    process that trains many networks would reach the recompilation limit.
    """
    torch._dynamo.reset()
    return torch.compile(model, dynamic=False, options={"fallback_random": True})  # pyright: ignore[reportReturnType]
