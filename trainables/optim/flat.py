"""Stores a model's float tensors in a few flat buffers: parameters, gradients, running statistics.

Used by the training loop, the optimizers and checkpoints. Small networks have hundreds of small
tensors, and a step that processes them one by one spends more time on overhead between tensors than
on computation. The model's tensors become views of the buffers, and operations on all of them work
on the buffers. As a consequence, weight decay also reaches parameters that no output depends on. On
a CPU an optimizer processes the buffers in pieces that stay in the cache for all of its operations.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

# Tensors start at multiples of this many floats: one cache line, and good for vector instructions.
ALIGNMENT = 16
# Floats per optimizer piece on a CPU: small enough for the cache, large enough that the overhead of
# calls is small.
PIECE_SIZE = 65_536


class FlatBuffers:
    """The flat buffers of a model, which must not be moved or cast afterwards.

    Attributes:
        parameters, gradients: float32 (n,); all trainable parameters, with weights (two or more
            dimensions) first.
        others: float32 (m,); batch norm's running statistics, then other float buffers and frozen
            parameters.
        statistics: the part of ``others`` that contains the running statistics.
    """

    def __init__(self, model: nn.Module) -> None:
        named = sorted(
            ((n, p) for n, p in model.named_parameters() if p.requires_grad),
            key=lambda pair: pair[1].ndim <= 1,
        )
        trained = [parameter for _, parameter in named]
        self.parameters, views = _gather(trained)
        self.gradients = torch.zeros_like(self.parameters)
        self._weights = sum(_padded_size(p) for p in trained if p.ndim > 1)
        for parameter, (start, view) in zip(trained, views, strict=True):
            parameter.data = view
            parameter.grad = _view_like(self.gradients, start, view)
        self._offsets = [
            (name, start, view) for (name, _), (start, view) in zip(named, views, strict=True)
        ]
        running = list(running_statistics(model))
        known = {id(t) for t in running}
        rest = [t for t in _float_tensors(model) if id(t) not in known and not t.requires_grad]
        self.others, views = _gather([*running, *rest])
        for tensor, (_, view) in zip([*running, *rest], views, strict=True):
            tensor.data = view
        self.statistics = self.others[: sum(map(_padded_size, running))]

    def pieces(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Optimizer parameters: pieces of the weights, and of biases and normalisation."""
        whole = self.parameters.device.type != "cpu"
        parts = ((0, self._weights), (self._weights, len(self.parameters)))
        weights, plain = (
            [self._piece(a, b) for a, b in _split(*part, whole=whole)] for part in parts
        )
        return weights, plain

    def by_name(self, values: Tensor) -> dict[str, Tensor]:
        """Views of a buffer by parameter name, with the parameters' shapes.

        Args:
            values: (n,), laid out like ``parameters``; for example an optimizer's averages.
        """
        return {name: _view_like(values, start, view) for name, start, view in self._offsets}

    def _piece(self, start: int, end: int) -> nn.Parameter:
        piece = nn.Parameter(self.parameters[start:end])
        piece.grad = self.gradients[start:end]
        return piece


def running_statistics(model: nn.Module) -> Iterable[Tensor]:
    """Running means and variances of the model's batch-norm layers."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield from (
                b for b in (module.running_mean, module.running_var) if isinstance(b, Tensor)
            )


def _float_tensors(model: nn.Module) -> list[Tensor]:
    """Float parameters and buffers without duplicates."""
    tensors = (*model.parameters(), *model.buffers())
    return list({id(t): t for t in tensors if t.is_floating_point()}.values())


def _gather(tensors: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    """Copy tensors into one buffer.

    Returns:
        The buffer, and (start, view) of each tensor in it; views have the tensor's memory order.
    """
    device = tensors[0].device if tensors else torch.device("cpu")
    flat, start, views = torch.zeros(sum(map(_padded_size, tensors)), device=device), 0, []
    for tensor in tensors:
        view = _view_like(flat, start, tensor.detach())
        view.copy_(tensor.detach())
        views.append((start, view))
        start += _padded_size(tensor)
    return flat, views


def _view_like(flat: Tensor, start: int, tensor: Tensor) -> Tensor:
    """A view of ``flat`` with the tensor's shape and memory order."""
    part = flat[start : start + tensor.numel()]
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        n, c, h, w = tensor.shape
        return part.view(n, h, w, c).permute(0, 3, 1, 2)
    return part.view(tensor.shape)


def _padded_size(tensor: Tensor) -> int:
    """Floats that a tensor occupies in a buffer: its size rounded up to ``ALIGNMENT``."""
    return -(-tensor.numel() // ALIGNMENT) * ALIGNMENT


def _split(start: int, end: int, *, whole: bool) -> list[tuple[int, int]]:
    """Bounds of the pieces of a range; ``whole`` keeps the range in one piece."""
    if start == end or whole:
        return [(start, end)] if end > start else []
    return [(a, min(a + PIECE_SIZE, end)) for a in range(start, end, PIECE_SIZE)]
