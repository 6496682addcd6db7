"""Augmentation of complete micro-batches: drawn on the host from one seed, applied on any device.

The distributions are those of torchvision's ``RandomResizedCrop``, ``RandomHorizontalFlip`` and
``ColorJitter``. Called by the loaders of packed data and of the built-in set.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainables.data import MEAN, STD
from trainables.recipe import Recipe

SCALE, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
# Rec. 601 weights of red, green and blue, as in Pillow and torchvision.
GREY = (0.299, 0.587, 0.114)
BRIGHTNESS, CONTRAST, SATURATION = range(3)


class Jitter(NamedTuple):
    """The colour jitter of n images.

    Attributes:
        order: int (n, 3), the change applied at each step: brightness, contrast or saturation.
        factors: float64 (n, 3), the strength of the change at each step.
    """

    order: np.ndarray
    factors: np.ndarray


class Draws(NamedTuple):
    """The random decisions of one micro-batch.

    Attributes:
        boxes: int64 (n, 4), top, left, height and width of the crops in pixels.
        flip: bool (n,), whether an image is flipped horizontally.
        jitter: None if the recipe has no colour jitter.
    """

    boxes: np.ndarray
    flip: np.ndarray
    jitter: Jitter | None


def draw(recipe: Recipe, sizes: np.ndarray, seed: int) -> Draws:
    """Draw the paper's augmentation for images of ``sizes``, int64 (n, 2) heights and widths.

    The same seed gives the same result.
    """
    rng = np.random.default_rng(seed)
    boxes = crop_boxes(sizes, rng)
    flip = rng.random(len(sizes)) < recipe.hflip
    return Draws(
        boxes, flip, draw_jitter(len(sizes), recipe.jitter, rng) if recipe.jitter else None
    )


def crop_boxes(sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw random-resized crops, int64 (n, 4).

    Each image takes the first of ten candidate boxes that fits inside it. If none fits, it takes
    the largest central box whose aspect ratio is within ``RATIO``.
    """
    n, height, width = len(sizes), sizes[:, :1], sizes[:, 1:]
    uniform = rng.random((4, n, TRIES))
    area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * uniform[0])
    low, high = map(math.log, RATIO)
    aspect = np.exp(low + (high - low) * uniform[1])
    heights, widths = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits = (heights > 0) & (widths > 0) & (heights <= height) & (widths <= width)
    tops, lefts = (
        np.floor(uniform[2] * (height - heights + 1)),
        np.floor(uniform[3] * (width - widths + 1)),
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
    """Draw an order of the three changes and their factors for each of n images.

    Factors are uniform between max(0, 1 - strength) and 1 + strength.
    """
    order = rng.permuted(np.tile(np.arange(3), (n, 1)), axis=1)
    low = max(0.0, 1 - strength)
    return Jitter(order, low + (1 + strength - low) * rng.random((n, 3)))


def jitter_(images: Tensor, jitter: Jitter) -> Tensor:
    """Apply colour jitter in place to float32 planar images (n, 3, h, w) with values 0..255.

    Each change blends a pixel with another value: brightness with black, contrast with the mean
    grey of the image, saturation with the grey of the pixel. One blend per step therefore serves
    all images, in any order of the changes.
    """
    if not len(images):
        return images
    device, flat = images.device, images.flatten(2)
    order = torch.from_numpy(jitter.order).to(device)
    weight = 1 - torch.from_numpy(jitter.factors).to(device, torch.float32)
    saturation, contrast = (order == SATURATION).float(), (order == CONTRAST).float()
    for step in range(3):
        grey = (
            (flat[:, 0] * GREY[0]).add_(flat[:, 1], alpha=GREY[1]).add_(flat[:, 2], alpha=GREY[2])
        )
        mean_grey = contrast[:, step] * grey.mean(1)
        grey.mul_(saturation[:, step, None]).add_(mean_grey[:, None])
        flat.lerp_(grey[:, None], weight[:, step, None, None]).clamp_(0, 255)
    return images


def normalise_into(out: Tensor, images: Tensor) -> None:
    """Normalise planar images (n, 3, h, w) with values 0..255 into the channels_last batch ``out``.

    ``images`` is overwritten.
    """
    for k, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        # The change of layout is the expensive part, so the strided tensor is written only once.
        out[:, k].copy_(images[:, k].sub_(mean * 255).mul_(1 / (std * 255)))


def augment_shift(images: Tensor, recipe: Recipe, seed: int) -> Tensor:
    """Augment a batch of float images with values 0..255 for the recipe that shifts.

    The steps are a shift that repeats the edge pixels, a horizontal flip, brightness and contrast.
    """
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
