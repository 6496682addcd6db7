"""Accuracy on labelled images: top-1, top-5 and cross-entropy, every image counted once on any number of ranks."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
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
    weights: Sequence[Callable[[], AbstractContextManager[None]]] = (nullcontext,),
) -> list[Scores]:
    """Scores of a model, which is left in evaluation mode, with each of some weights.

    Args:
        batches: images (n, 3, pixels, pixels) and int64 labels (n,), of this rank, on the device; read once.
        all_sum: adds a tensor over the ranks.
        weights: contexts in which the model has the weights to score; by default its own.
    """
    model.eval()
    sums = torch.zeros(len(weights), 4, device=device, dtype=torch.float64)
    for images, labels in batches:  # outside of autocast: readers compute in their own precision
        for part, put in zip(sums, weights, strict=True):
            with put(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = model(images)
            part += _sums(logits.float(), labels)
    return [
        Scores(100 * right / n, 100 * among / n, loss / n, int(n))
        for right, among, loss, n in all_sum(sums).tolist()
    ]


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([best[:, 0].sum(), best.sum(), loss, loss.new_tensor(len(labels))])
