"""A model's floats as a few flat buffers: parameters, their gradients, and batch norm's running statistics.

Small networks have hundreds of tensors of a few numbers each, and a step that visits them one by one spends more time
between the visits than in them. The model keeps its own tensors, as views; whoever works on all of them works on the
buffers, and so weight decay reaches parameters that no output depends on too. On a CPU an optimizer is given pieces that
stay in the cache from its first operation to its last.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

# Floats between the beginnings of two tensors: a cache line, and what vector instructions like.
ALIGNED = 16
# Floats of an optimizer's piece on a CPU: small enough for the cache, large enough that calls cost little.
PIECE = 65_536


class Flat:
    """The buffers of a model, which must not be moved or cast afterwards.

    Attributes:
        parameters, gradients: float32 (n,); every trainable parameter, weights (two dimensions and more) first.
        others: float32 (m,); running statistics of batch norm, then other float buffers and frozen parameters.
        statistics: the part of ``others`` that is running statistics.
    """

    def __init__(self, model: nn.Module) -> None:
        named = sorted(
            ((n, p) for n, p in model.named_parameters() if p.requires_grad),
            key=lambda pair: pair[1].ndim <= 1,
        )
        trained = [parameter for _, parameter in named]
        self.parameters, views = _gathered(trained)
        self.gradients = torch.zeros_like(self.parameters)
        self._weights = sum(_room(p) for p in trained if p.ndim > 1)
        for parameter, (start, view) in zip(trained, views, strict=True):
            parameter.data = view
            parameter.grad = _like(self.gradients, start, view)
        self._places = [
            (name, start, view) for (name, _), (start, view) in zip(named, views, strict=True)
        ]
        running = list(running_statistics(model))
        known = {id(t) for t in running}
        rest = [t for t in _floats(model) if id(t) not in known and not t.requires_grad]
        self.others, views = _gathered([*running, *rest])
        for tensor, (_, view) in zip([*running, *rest], views, strict=True):
            tensor.data = view
        self.statistics = self.others[: sum(map(_room, running))]

    def pieces(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters as an optimizer takes them: pieces of the weights, and of biases and normalisation."""
        whole = self.parameters.device.type != "cpu"
        parts = ((0, self._weights), (self._weights, len(self.parameters)))
        weights, plain = (
            [self._piece(a, b) for a, b in _cut(*part, whole=whole)] for part in parts
        )
        return weights, plain

    def by_name(self, values: Tensor) -> dict[str, Tensor]:
        """Views of a buffer like ``parameters`` (an optimizer's averages, for one) by the parameters' names and shapes."""
        return {name: _like(values, start, view) for name, start, view in self._places}

    def _piece(self, start: int, end: int) -> nn.Parameter:
        piece = nn.Parameter(self.parameters[start:end])
        piece.grad = self.gradients[start:end]
        return piece


def running_statistics(model: nn.Module) -> Iterable[Tensor]:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield from (
                b for b in (module.running_mean, module.running_var) if isinstance(b, Tensor)
            )


def _floats(model: nn.Module) -> list[Tensor]:
    """Float parameters and buffers, each once."""
    found = (*model.parameters(), *model.buffers())
    return list({id(t): t for t in found if t.is_floating_point()}.values())


def _gathered(tensors: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    """One buffer with all values, and (start, view) of each tensor in it, in the tensor's own memory order."""
    device = tensors[0].device if tensors else torch.device("cpu")
    flat, start, views = torch.zeros(sum(map(_room, tensors)), device=device), 0, []
    for tensor in tensors:
        view = _like(flat, start, tensor.detach())
        view.copy_(tensor.detach())
        views.append((start, view))
        start += _room(tensor)
    return flat, views


def _like(flat: Tensor, start: int, tensor: Tensor) -> Tensor:
    """A view of ``flat`` with the tensor's shape and memory order."""
    part = flat[start : start + tensor.numel()]
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        n, c, h, w = tensor.shape
        return part.view(n, h, w, c).permute(0, 3, 1, 2)
    return part.view(tensor.shape)


def _room(tensor: Tensor) -> int:
    return -(-tensor.numel() // ALIGNED) * ALIGNED


def _cut(start: int, end: int, *, whole: bool) -> list[tuple[int, int]]:
    if start == end or whole:
        return [(start, end)] if end > start else []
    return [(a, min(a + PIECE, end)) for a in range(start, end, PIECE)]
