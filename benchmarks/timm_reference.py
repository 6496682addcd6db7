"""Reference training loop: the step of timm's train.py, built from the fastest components of timm.

``train_speed`` and ``train_data`` compare the ``Trainer`` with it. Every option that a user of timm
could enable for speed is enabled:

* network: built by the same search space, so from timm's own modules, with the same dropout;
  channels_last;
* optimizer: timm's RMSpropTF through ``create_optimizer_v2`` (no weight decay on one-dimensional
  parameters), with ``foreach=True``, which timm enables by default on a GPU only and which is also
  faster on a CPU;
* weight average: ``ModelEmaV3`` with ``foreach=True`` over weights and buffers, updated at every
  step as in train.py;
* loss: torch's cross entropy with label smoothing instead of timm's own class, which is slower;
* gradients are set to None; the schedule's ``step_update`` is called at every step as in train.py;
* a step has no ``loss.item()``, meter or synchronisation: train.py has some, but a user can remove
  them;
* both loops use the same precision (autocast to bf16 on a GPU), ``cudnn.benchmark``, and
  ``torch.compile`` either in both or in neither;
* reading: ``create_loader`` over the JPEG files with the recipe's augmentation, persistent workers,
  page-locked batches for a GPU, and the prefetcher, also on a CPU, where its collating of bytes is
  faster too.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from timm.data.dataset_factory import create_dataset
from timm.data.loader import create_loader
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.step_lr import StepLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from search_spaces import Network
from trainables.data import Batch
from trainables.recipe import Recipe


class TimmLoop:
    """Trains with timm's components; ``train`` takes one optimizer step for each batch."""

    def __init__(
        self, network: Network, recipe: Recipe, device: torch.device, *, compiled: bool, bf16: bool
    ) -> None:
        torch.manual_seed(0)
        model = network.build(drop_rate=recipe.dropout, drop_path_rate=recipe.drop_path)
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = create_optimizer_v2(
            self.model,
            opt="rmsproptf",
            lr=recipe.peak_lr,
            weight_decay=recipe.weight_decay,
            momentum=0.9,
            alpha=0.9,
            eps=1e-3,
            foreach=True,
        )
        self.schedule = StepLRScheduler(
            self.optimizer,
            decay_t=recipe.decay_epochs,
            decay_rate=recipe.decay,
            warmup_t=int(recipe.warmup_epochs),
            warmup_lr_init=recipe.warmup_lr,
        )
        self.average = ModelEmaV3(
            self.model, decay=recipe.ema_decay, use_warmup=recipe.ema_warmup, foreach=True
        )
        self.loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.called = torch.compile(self.model) if compiled else self.model
        self.device, self.bf16, self.updates = device, bf16, 0

    def train(self, batches: Iterable[Batch]) -> None:
        self.model.train()
        for images, labels in batches:
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss = self.loss(self.called(images), labels)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.updates += 1
            self.average.update(self.model, step=self.updates)
            self.schedule.step_update(num_updates=self.updates)


def timm_loader(
    tree: Path, pixels: int, recipe: Recipe, device: torch.device, workers: int
) -> Iterable[Batch]:
    """timm's loader of ``tree/train`` with the augmentation of the recipe ``efficientnet``.

    One pass over it is one epoch.
    """
    files: Any = create_dataset("", root=str(tree), split="train")
    return create_loader(
        files,
        (3, pixels, pixels),
        recipe.micro_batch,
        is_training=True,
        hflip=recipe.hflip,
        color_jitter=recipe.jitter,
        interpolation="bicubic",
        num_workers=workers,
        pin_memory=device.type == "cuda",
        device=device,
        use_prefetcher=True,
    )
