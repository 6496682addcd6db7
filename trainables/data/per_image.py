"""Per-image loading: decode, augment and collate one image at a time.

This is the method of the paper's script, optionally in worker processes. Used by all data sets of
encoded images, and by the others for recipes that need PIL images.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from trainables.data import MEAN, STD, Batch, MicroBatch, Reading
from trainables.recipe import Recipe

BICUBIC = v2.InterpolationMode.BICUBIC


class Split(NamedTuple):
    """Images by index (RGB PIL images) and their labels, int64 (n,)."""

    image: Callable[[int], Any]
    labels: np.ndarray


def train_transform(recipe: Recipe, resolution: int) -> v2.Compose:
    """Return the recipe's augmentation of one PIL image.

    Its output is a normalised float tensor (3, resolution, resolution).
    """
    if recipe.augment == "paper":
        steps: list[Any] = [
            v2.RandomResizedCrop(
                resolution,
                scale=(0.08, 1.0),
                ratio=(3 / 4, 4 / 3),
                interpolation=BICUBIC,
                antialias=True,
            ),
            v2.RandomHorizontalFlip(recipe.hflip),
        ]
        if recipe.randaugment:
            from timm.data.auto_augment import rand_augment_transform

            fill = tuple(round(255 * m) for m in MEAN)
            steps.append(
                rand_augment_transform(
                    recipe.randaugment,
                    {"translate_const": int(resolution * 0.45), "img_mean": fill},
                )
            )
        if recipe.jitter:
            steps.append(v2.ColorJitter(recipe.jitter, recipe.jitter, recipe.jitter))
    else:
        steps = [
            v2.Resize(resolution, antialias=True),
            v2.CenterCrop(resolution),
            v2.RandomHorizontalFlip(recipe.hflip),
            v2.RandomAffine((0.0, 0.0), translate=(recipe.shift, recipe.shift)),
            v2.ColorJitter(recipe.jitter, recipe.jitter),
        ]
    return v2.Compose([*steps, *_to_tensor()])


def val_transform(recipe: Recipe, resolution: int) -> v2.Compose:
    """Return the evaluation transform of section 4.1.

    It resizes the short side to resolution / eval_ratio (bicubic) and crops the centre.
    """
    short = int(resolution / recipe.eval_ratio)
    return v2.Compose(
        [
            v2.Resize(short, interpolation=BICUBIC, antialias=True),
            v2.CenterCrop(resolution),
            *_to_tensor(),
        ]
    )


def _to_tensor() -> list[Any]:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]


class _Images(Dataset[tuple[Tensor, int]]):
    """A data set whose items are (index, batch seed).

    The random state of an image depends on these two alone, so the number of workers does not
    change the result.
    """

    def __init__(self, split: Split, transform: v2.Compose) -> None:
        self._split, self._transform = split, transform

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        index, batch_seed = item
        seed = int(np.random.SeedSequence([batch_seed, index]).generate_state(1)[0])
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        return self._transform(self._split.image(index)), int(self._split.labels[index])


class PerImageLoader:
    """Loader for any image source, with the paper's transforms."""

    def __init__(
        self,
        train: Split,
        val: Split,
        resolution: int,
        recipe: Recipe,
        device: torch.device,
        reading: Reading,
    ) -> None:
        self._device = device
        context = "fork" if reading.workers else None
        load = partial(
            DataLoader,
            num_workers=reading.workers,
            pin_memory=reading.pinned,
            multiprocessing_context=context,
        )
        self._train_loader = partial(load, _Images(train, train_transform(recipe, resolution)))
        self._val_loader = partial(load, _Images(val, val_transform(recipe, resolution)))

    def train(self, batches: Sequence[MicroBatch]) -> Iterator[Batch]:
        items = [[(int(i), b.seed) for i in b.indices] for b in batches]
        yield from self._to_device(self._train_loader(batch_sampler=items))

    def val(self, batches: Sequence[np.ndarray]) -> Iterator[Batch]:
        yield from self._to_device(
            self._val_loader(batch_sampler=[[(int(i), int(i)) for i in b] for b in batches])
        )

    def _to_device(self, loader: Any) -> Iterator[Batch]:
        for images, labels in loader:
            images = images.to(self._device, non_blocking=True).contiguous(
                memory_format=torch.channels_last
            )
            yield images, labels.to(self._device, non_blocking=True)
