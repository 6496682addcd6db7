"""Augmentation of whole micro-batches: everything is drawn on the host from one seed, and applied on any device.

The distributions are those of torchvision's ``RandomResizedCrop``, ``RandomHorizontalFlip`` and ``ColorJitter``.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainables.data import MEAN, STD
from trainables.recipe import Recipe

SCALE, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
# Rec. 601, as Pillow and torchvision weigh red, green and blue.
GREY = (0.299, 0.587, 0.114)
BRIGHTNESS, CONTRAST, SATURATION = range(3)


class Jitter(NamedTuple):
    """Three steps for each image: which of the three changes comes when, and how strong; both (n, 3), by step."""

    order: np.ndarray
    factors: np.ndarray


class Draws(NamedTuple):
    """What chance decides of one micro-batch.

    Attributes:
        boxes: int64 (n, 4), the crops' top, left, height and width in pixels.
        flip: bool (n,). jitter: None where the recipe has none.
    """

    boxes: np.ndarray
    flip: np.ndarray
    jitter: Jitter | None


def draw(recipe: Recipe, sizes: np.ndarray, seed: int) -> Draws:
    """The paper's augmentation of images of ``sizes``, int64 (n, 2) heights and widths: the same for the same seed."""
    rng = np.random.default_rng(seed)
    boxes = crop_boxes(sizes, rng)
    flip = rng.random(len(sizes)) < recipe.hflip
    return Draws(
        boxes, flip, draw_jitter(len(sizes), recipe.jitter, rng) if recipe.jitter else None
    )


def crop_boxes(sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random-resized crops, int64 (n, 4): of ten tries the first that fits, else the largest central one of a fair ratio."""
    n, height, width = len(sizes), sizes[:, :1], sizes[:, 1:]
    dice = rng.random((4, n, TRIES))
    area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * dice[0])
    low, high = map(math.log, RATIO)
    aspect = np.exp(low + (high - low) * dice[1])
    heights, widths = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits = (heights > 0) & (widths > 0) & (heights <= height) & (widths <= width)
    tops, lefts = (
        np.floor(dice[2] * (height - heights + 1)),
        np.floor(dice[3] * (width - widths + 1)),
    )
    tried = np.stack((tops, lefts, heights, widths), -1)[np.arange(n), fits.argmax(1)]
    return np.where(fits.any(1)[:, None], tried, _central(sizes)).astype(np.int64)


def _central(sizes: np.ndarray) -> np.ndarray:
    height, width = sizes[:, 0], sizes[:, 1]
    tall, wide = width < RATIO[0] * height, width > RATIO[1] * height
    heights = np.where(tall, np.rint(width / RATIO[0]), height)
    widths = np.where(wide, np.rint(height * RATIO[1]), width)
    return np.stack(((height - heights) // 2, (width - widths) // 2, heights, widths), -1)


def draw_jitter(n: int, strength: float, rng: np.random.Generator) -> Jitter:
    """Every image's own order of the three changes, and factors from max(0, 1 - strength) to 1 + strength."""
    order = rng.permuted(np.tile(np.arange(3), (n, 1)), axis=1)
    low = max(0.0, 1 - strength)
    return Jitter(order, low + (1 + strength - low) * rng.random((n, 3)))


def jitter_(images: Tensor, jitter: Jitter) -> Tensor:
    """Change float32 planar images (n, 3, h, w) of 0..255 in place.

    Each change moves a pixel away from, or towards, another value: brightness black, contrast the image's mean grey,
    saturation the pixel's own grey. So one blend serves all images whatever each one's order is.
    """
    if not len(images):
        return images
    device, flat = images.device, images.flatten(2)
    order = torch.from_numpy(jitter.order).to(device)
    away = 1 - torch.from_numpy(jitter.factors).to(device, torch.float32)
    own, mean = (order == SATURATION).float(), (order == CONTRAST).float()
    for step in range(3):
        grey = (
            (flat[:, 0] * GREY[0]).add_(flat[:, 1], alpha=GREY[1]).add_(flat[:, 2], alpha=GREY[2])
        )
        other = mean[:, step] * grey.mean(1)
        grey.mul_(own[:, step, None]).add_(other[:, None])
        flat.lerp_(grey[:, None], away[:, step, None, None]).clamp_(0, 255)
    return images


def normalise_into(out: Tensor, images: Tensor) -> None:
    """Write planar images (n, 3, h, w) of 0..255, which are overwritten, normalised into a channels_last batch."""
    for k, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        # The change of layout is the dear part, so nothing else is done to the strided side.
        out[:, k].copy_(images[:, k].sub_(mean * 255).mul_(1 / (std * 255)))


def augmented(images: Tensor, recipe: Recipe, seed: int) -> Tensor:
    """Whole batch at once: shift with the edge repeated, horizontal flip, brightness and contrast (0..255 floats)."""
    generator = torch.Generator().manual_seed(seed)
    n, _, height, width = images.shape
    reach = round(recipe.shift * height)
    if reach:
        moves = torch.randint(-reach, reach + 1, (2, n, 1), generator=generator).to(images.device)
        rows = (torch.arange(height, device=images.device) + moves[0]).clamp_(0, height - 1)
        columns = (torch.arange(width, device=images.device) + moves[1]).clamp_(0, width - 1)
        images = images.permute(0, 2, 3, 1)[
            torch.arange(n, device=images.device)[:, None, None],
            rows[:, :, None],
            columns[:, None, :],
        ]
        images = images.permute(0, 3, 1, 2)
    if recipe.hflip:
        flip = torch.rand(n, generator=generator).to(images.device) < recipe.hflip
        images = torch.where(flip.view(n, 1, 1, 1), images.flip(-1), images)
    if recipe.jitter:
        gain, contrast = (
            1 + recipe.jitter * (2 * torch.rand(2, n, 1, 1, 1, generator=generator) - 1)
        ).to(images.device)
        middle = images.mean((1, 2, 3), keepdim=True)
        images = ((images - middle) * contrast + middle * gain).clamp_(0, 255)
    return images
