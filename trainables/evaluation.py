"""Computes top-1, top-5 and cross-entropy on labelled images, with every image counted once.

Called by the training loop on any number of ranks, and by ``tinynet train --eval-only``.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Scores(NamedTuple):
    """Accuracy and loss over ``images`` images.

    Attributes:
        top1, top5: percent of images whose class is the best prediction, or among the best five.
        loss: mean cross-entropy in nats.
    """

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
    weights: Sequence[Callable[[], AbstractContextManager[None]]] = (nullcontext,),
) -> list[Scores]:
    """Score a model with each of several sets of weights; the model is left in evaluation mode.

    Args:
        batches: this rank's images (n, 3, pixels, pixels) and int64 labels (n,), on the device;
            iterated once.
        all_sum: sums a tensor over the ranks.
        weights: one context manager per set of weights, inside which the model holds them; by
            default the model's own weights.

    Returns:
        One ``Scores`` per set of weights.
    """
    model.eval()
    sums = torch.zeros(len(weights), 4, device=device, dtype=torch.float64)
    # Batches are read outside autocast, so that data loaders compute in their own precision.
    for images, labels in batches:
        for part, applied in zip(sums, weights, strict=True):
            with applied(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = model(images)
            part += _sums(logits.float(), labels)
    return [
        Scores(100 * first / n, 100 * top_five / n, loss / n, int(n))
        for first, top_five, loss, n in all_sum(sums).tolist()
    ]


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Sums of a batch (4,): top-1 hits, top-5 hits, cross-entropy, number of images."""
    best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([best[:, 0].sum(), best.sum(), loss, loss.new_tensor(len(labels))])
