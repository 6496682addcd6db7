"""A training step compared with one written out here, and the scores of an evaluation."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from timm.optim.rmsprop_tf import RMSpropTF
from torch import Tensor, nn
from torch.nn import functional

from tests.trainables.helpers import tiny_spec
from trainables.data import open_data
from trainables.evaluation import evaluate
from trainables.optim.optimizers import float_state
from trainables.spec import LocalReporter
from trainables.storage.folder import LocalFolder
from trainables.trainer import Trainer

pytestmark = pytest.mark.quick

SETTINGS = {
    "batch": 16,
    "micro_batch": 8,
    "optimizer": "rmsprop_tf",
    "label_smoothing": 0.1,
    "weight_decay": 0.01,
}
WARM_UP = {
    "schedule": "step",
    "warmup_epochs": 3,
    "warmup_lr": 0.001,
    "lr": 0.004,
    "ema_decay": 0.9,
    "ema_warmup": True,
}


def test_three_steps_match_a_reference(tmp_path: Path) -> None:
    """Steps of two micro-batches.

    Compares the smoothed loss, mean gradient, mean statistics, learning rate and EMA decay.
    """
    spec = tiny_spec(**SETTINGS, **WARM_UP)
    trainer = Trainer(spec, open_data(spec.data), LocalFolder(tmp_path), LocalReporter())
    model = copy.deepcopy(trainer.model).train()
    groups = [
        {
            "params": [p for p in model.parameters() if (p.ndim > 1) == (k == 0)],
            "weight_decay": (0.01, 0)[k],
        }
        for k in (0, 1)
    ]
    optimizer = RMSpropTF(groups, alpha=0.9, momentum=0.9, eps=1e-3)
    average = {name: value.clone() for name, value in float_state(model).items()}
    trainer.model.train()
    images = torch.randn(
        6, 8, 3, trainer.spec.network().resolution, trainer.spec.network().resolution
    )
    labels = torch.arange(48).remainder(24).view(6, 8)
    shares = trainer._shares(0)
    rates = (0.001, 0.001, 0.001)  # all three steps are in the first epoch, which has six
    for step in range(3):
        batches = [
            (
                images[2 * step + k].contiguous(memory_format=torch.channels_last),
                labels[2 * step + k],
            )
            for k in (0, 1)
        ]
        loss = trainer._step(step, shares[step], iter(batches))
        expected = _reference_step(model, optimizer, batches, rates[step])
        torch.testing.assert_close(loss, expected)
        decay = min(0.9, (2 + step) / (11 + step))
        average = {
            name: decay * value + (1 - decay) * float_state(model)[name]
            for name, value in average.items()
        }
        for name, value in float_state(trainer.model).items():
            torch.testing.assert_close(
                value,
                float_state(model)[name],
                rtol=1e-4,
                atol=1e-6,
                msg=lambda m, n=name: f"{n}: {m}",
            )
    for name, value in trainer.state.average.state().items():
        torch.testing.assert_close(value, average[name], rtol=1e-4, atol=1e-6)


def _reference_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[tuple[Tensor, Tensor]],
    rate: float,
) -> Tensor:
    start = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    sums = {name: torch.zeros_like(buffer) for name, buffer in start.items()}
    total = torch.zeros(())
    optimizer.zero_grad()
    for images, labels in batches:
        smooth = torch.full((8, 24), 0.1 / 24).scatter_(1, labels[:, None], 0.9 + 0.1 / 24)
        loss = -(smooth * functional.log_softmax(model(images), 1)).sum(1).mean()
        (loss / 2).backward()
        total += loss.detach() / 2
        for name, buffer in model.named_buffers():
            if name in start:
                sums[name] += buffer / 2
                buffer.copy_(start[name])
    for name, buffer in model.named_buffers():
        if name in start:
            buffer.copy_(sums[name])
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return total


def test_loaders_run_outside_autocast() -> None:
    """Matrix products of a data loader keep float32 when the network runs under autocast."""
    dtypes = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        dtypes.append(torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype)
        yield torch.zeros(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64)

    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    (scores,) = evaluate(model, batches(), torch.device("cpu"), bf16=True)
    assert dtypes == [torch.float32]
    assert scores.images == 4


def test_scores_of_known_logits() -> None:
    """Top-1, top-5 and cross-entropy over batches of different size.

    With fewer than five classes, top-5 contains every class.
    """
    logits = torch.tensor([[3.0, 1, 0, 0, 0, -1, 2], [0, 3, 1, 0, 0, -1, 2], [9, 8, 7, 6, 5, 4, 3]])
    labels = torch.tensor([0, 0, 6])
    scores = evaluate(
        nn.Identity(), [(logits[:2], labels[:2]), (logits[2:], labels[2:])], torch.device("cpu")
    )[0]
    assert (round(scores.top1, 4), scores.images) == (33.3333, 3)
    assert round(scores.top5, 4) == 66.6667
    torch.testing.assert_close(scores.loss, functional.cross_entropy(logits, labels).item())
    few = evaluate(nn.Identity(), [(logits[:, :3], labels.clamp(max=2))], torch.device("cpu"))[0]
    assert few.top5 == 100
