"""Accuracy on labelled images: top-1, top-5 and cross-entropy, every image counted once on any number of ranks."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Scores(NamedTuple):
    """Percent of ``images`` whose class is the first guess (among the first five), and their mean cross-entropy in nats."""

    top1: float
    top5: float
    loss: float
    images: int


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    *,
    bf16: bool = False,
    all_sum: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Scores:
    """Scores of a model, which is left in evaluation mode.

    Args:
        batches: images (n, 3, pixels, pixels) and int64 labels (n,), of this rank, on the device.
        all_sum: adds a tensor over the ranks.
    """
    model.eval()
    sums = torch.zeros(4, device=device, dtype=torch.float64)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for images, labels in batches:
            sums += _sums(model(images).float(), labels)
    right, among, loss, count = all_sum(sums).tolist()
    return Scores(100 * right / count, 100 * among / count, loss / count, int(count))


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([best[:, 0].sum(), best.sum(), loss, loss.new_tensor(len(labels))])
