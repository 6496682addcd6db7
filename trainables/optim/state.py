"""Saves and restores an optimizer's state by parameter name.

Called by ``trainables.checkpoint``. The state is the same whether the optimizer works on flat
buffers or on the parameters.
"""

from typing import Any

import torch
from torch import Tensor, nn

from trainables.optim.flat import FlatBuffers


def optimizer_state(
    optimizer: torch.optim.Optimizer, flat: FlatBuffers | None, model: nn.Module
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """State of an optimizer that has taken a step.

    The settings of parameter groups are not included, because they come from the recipe.

    Returns:
        Tensors by ``<parameter>.<key>``, and scalars by key, which are the same for all parameters.
    """
    states = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
    first = states[0]
    scalars = {
        key: float(value)
        for key, value in first.items()
        if value is not None and not _per_weight(value)
    }
    tensors: dict[str, Tensor] = {}
    for key in (key for key, value in first.items() if _per_weight(value)):
        values = [state[key] for state in states]
        named = (
            flat.by_name(torch.cat(values))
            if flat
            else dict(zip(_names(optimizer, model), values, strict=True))
        )
        tensors |= {f"{name}.{key}": value for name, value in named.items()}
    return tensors, scalars


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    flat: FlatBuffers | None,
    model: nn.Module,
    tensors: dict[str, Tensor],
    scalars: dict[str, float],
) -> None:
    """Load a state that ``optimizer_state`` returned."""
    pieces = [p for group in optimizer.param_groups for p in group["params"]]
    states: list[dict[str, Tensor]] = [
        {key: torch.tensor(value) for key, value in scalars.items()} for _ in pieces
    ]
    for key in dict.fromkeys(name.rpartition(".")[2] for name in tensors):
        for state, value in zip(states, _values(optimizer, flat, model, tensors, key), strict=True):
            state[key] = value
    optimizer.load_state_dict(
        {"state": dict(enumerate(states)), "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _values(
    optimizer: torch.optim.Optimizer,
    flat: FlatBuffers | None,
    model: nn.Module,
    tensors: dict[str, Tensor],
    key: str,
) -> list[Tensor] | tuple[Tensor, ...]:
    """Values of one state key for each of the optimizer's parameters."""
    if flat is None:
        return [tensors[f"{name}.{key}"] for name in _names(optimizer, model)]
    whole = torch.zeros_like(flat.parameters)
    for name, view in flat.by_name(whole).items():
        view.copy_(tensors[f"{name}.{key}"])
    return whole.split([p.numel() for group in optimizer.param_groups for p in group["params"]])


def _names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """Names of the optimizer's parameters in the optimizer's order."""
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return [known[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _per_weight(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0
