"""What becomes of a network's module before it is trained: settings of its batch norm, compilation, and where it runs."""

import torch
from torch import nn

from trainables.recipe import Recipe


def pick_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


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


def compiled(model: nn.Module) -> nn.Module:
    """The model compiled by TorchInductor for one shape of input, with the random numbers that it draws uncompiled.

    A process that trains many networks would run into the limit of recompilations: each starts with an empty cache.
    """
    torch._dynamo.reset()
    return torch.compile(model, dynamic=False, options={"fallback_random": True})  # pyright: ignore[reportReturnType]
