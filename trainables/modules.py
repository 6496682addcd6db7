"""What becomes of a network's module before it is trained: settings of its batch norm, compilation, and where it runs."""

from typing import Any

import torch
from torch import Tensor, nn

from trainables.recipe import Recipe


def pick_device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def prepared(model: nn.Module, recipe: Recipe, world_size: int = 1) -> nn.Module:
    """The model in float32 with the recipe's batch norm."""
    if recipe.bn_momentum is not None:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = recipe.bn_momentum
    if recipe.sync_bn and world_size > 1:
        from timm.layers.norm_act import convert_sync_batchnorm

        model = convert_sync_batchnorm(model)
    return model.float()


def keep_layout(model: nn.Module) -> None:
    """Gradients of a global pool in channels_last, as the feature maps before it are.

    They are one number spread over a map, which autograd lays out the other way, and everything before the pool would go
    back through kernels for mixed layouts.
    """

    def ask(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        features = inputs[0]
        if isinstance(features, Tensor) and features.requires_grad and features.ndim == 4:
            features.register_hook(
                lambda gradient: gradient.contiguous(memory_format=torch.channels_last)
            )

    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "global_pool":
            module.register_forward_pre_hook(ask)


def seed(value: int, device: torch.device) -> None:
    """Seed the generators that a network draws from; ``torch.manual_seed`` does more, and takes a tenth of a millisecond."""
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)


def compiled(model: nn.Module) -> nn.Module:
    """The model compiled by TorchInductor for one shape of input, with the random numbers that it draws uncompiled.

    A process that trains many networks would run into the limit of recompilations: each starts with an empty cache.
    """
    torch._dynamo.reset()
    return torch.compile(model, dynamic=False, options={"fallback_random": True})  # pyright: ignore[reportReturnType]
