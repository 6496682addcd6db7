"""Batched augmentation compared with torchvision's, and the two implementations of resizing."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from trainables.data import MEAN, STD
from trainables.data.augment import Jitter, crop_boxes, draw, draw_jitter, jitter_, normalise_into
from trainables.data.packed.resample import (
    Mode,
    Windows,
    centre_windows,
    crop_windows,
    resize_batched,
    resize_native,
)
from trainables.recipe import get_recipe

pytestmark = pytest.mark.quick

BICUBIC = v2.InterpolationMode.BICUBIC


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Return smooth colours with noise, uint8 (3, height, width), interleaved as in the store."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(128, 50, (1, 3, 6, 7)))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    noisy = smooth + torch.from_numpy(rng.normal(0, 6, (1, height, width)))
    return noisy.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().permute(2, 0, 1)


def canvas_of(pictures: list[Tensor], boxes: np.ndarray) -> Tensor:
    """Return the regions in one batch, padded with random values that must not affect results."""
    canvas = torch.randint(
        0, 256, (len(pictures), *boxes[:, 2:].max(0).tolist(), 3), dtype=torch.uint8
    )
    for one, image, (top, left, height, width) in zip(
        canvas, pictures, boxes.tolist(), strict=True
    ):
        one[:height, :width] = image[:, top : top + height, left : left + width].permute(1, 2, 0)
    return canvas


@pytest.mark.parametrize("size", [(375, 500), (64, 64), (60, 240), (500, 90)])
def test_crops_follow_torchvisions_distribution(size: tuple[int, int]) -> None:
    """A Kolmogorov-Smirnov test of 3000 boxes with fixed seeds finds no difference.

    At an aspect ratio of 1:4 and beyond some boxes are the central fallback.
    """
    count = 3000
    boxes = crop_boxes(np.tile(size, (count, 1)), np.random.default_rng(0))
    torch.manual_seed(0)
    transform, blank = v2.RandomResizedCrop(8, antialias=True), torch.zeros(3, *size)
    drawn = [transform.make_params([blank]) for _ in range(count)]
    reference = np.array([[d[k] for k in ("top", "left", "height", "width")] for d in drawn])
    assert (
        (boxes[:, :2] >= 0).all()
        and (boxes[:, :2] + boxes[:, 2:] <= size).all()
        and (boxes[:, 2:] > 0).all()
    )
    for name, measure in {
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "bottom": lambda b: b[:, 0] + b[:, 2],
    }.items():
        result: Any = ks_2samp(measure(boxes), measure(reference))
        assert result.pvalue > 0.01, name


def test_narrow_image_falls_back_to_torchvisions_central_crop() -> None:
    for size in ((10, 400), (400, 10)):
        params = v2.RandomResizedCrop(8, scale=(0.9, 1), antialias=True).make_params(
            [torch.zeros(3, *size)]
        )
        boxes = crop_boxes(np.tile(size, (50, 1)), np.random.default_rng(0))
        expected = [params[k] for k in ("top", "left", "height", "width")]
        assert expected in boxes.tolist()


@pytest.mark.parametrize("pixels", [24, 57])
def test_crop_and_flip_equal_torchvisions(pixels: int) -> None:
    image = picture(90, 120)
    for top, left, height, width in crop_boxes(
        np.tile((90, 120), (12, 1)), np.random.default_rng(1)
    ).tolist():
        region = image[:, top : top + height, left : left + width]
        resized = resize_native(
            region, np.array([pixels, pixels]), np.zeros(2, int), pixels, "bicubic"
        )
        cropped = tv.resized_crop(
            image, top, left, height, width, [pixels, pixels], interpolation=BICUBIC, antialias=True
        )
        assert torch.equal(resized.flip(-1), tv.horizontal_flip(cropped))


@pytest.mark.parametrize("size", [(90, 120), (121, 80), (75, 75), (70, 301)])
@pytest.mark.parametrize("ratio", [0.875, 1.0])
def test_centre_equals_resize_and_centre_crop(size: tuple[int, int], ratio: float) -> None:
    image, short = picture(*size), int(56 / ratio)
    windows = centre_windows(np.array([size]), short, 56)
    centre = resize_native(image, windows.scaled[0], windows.offsets[0], 56, "bicubic")
    expected = v2.Compose(
        [v2.Resize(short, interpolation=BICUBIC, antialias=True), v2.CenterCrop(56)]
    )(image)
    assert torch.equal(centre, expected)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("pixels", [20, 70])
def test_matrix_products_match_native_resizing(mode: Mode, pixels: int) -> None:
    """The difference is at most 2 grey levels, and 0.3 in the mean.

    The native kernel rounds between rows and columns and uses 8-bit weights.
    """
    sizes = np.array([(90, 120), (60, 50), (131, 97), (40, 40)])
    pictures = [picture(*size, seed=k) for k, size in enumerate(sizes.tolist())]
    flip = np.array([True, False, True, False])
    for windows in (
        crop_windows(crop_boxes(sizes, np.random.default_rng(3)), pixels),
        centre_windows(sizes, pixels + 9, pixels),
    ):
        images = resize_batched(canvas_of(pictures, windows.regions), windows, flip, pixels, mode)
        expected = []
        for k, (top, left, height, width) in enumerate(windows.regions.tolist()):
            region = pictures[k][:, top : top + height, left : left + width]
            one = resize_native(region, windows.scaled[k], windows.offsets[k], pixels, mode)
            expected.append(one.flip(-1) if flip[k] else one)
        difference = (images - torch.stack(expected).float()).abs()
        assert difference.max() <= 2
        assert difference.mean() < 0.3


def test_weights_are_zero_outside_the_region() -> None:
    """A white region in a black frame stays white up to its edge."""
    canvas = torch.zeros(1, 50, 50, 3, dtype=torch.uint8)
    canvas[:, :30, :20] = 255
    boxes = np.array([[0, 0, 30, 20]])
    assert (
        resize_batched(canvas, crop_windows(boxes, 12), np.array([False]), 12, "bicubic") == 255
    ).all()
    assert Windows(*crop_windows(boxes, 12)).scaled.tolist() == [[12, 12]]


def test_jitter_matches_torchvision_in_every_order() -> None:
    """The difference is below 0.05 grey levels for floats, and at most 4 for uint8.

    For uint8 torchvision truncates the result of each change to integers.
    """
    changes = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    orders = [(a, b, 3 - a - b) for a in range(3) for b in range(3) if a != b]
    factors = np.random.default_rng(0).uniform(0.6, 1.4, (len(orders), 3))
    images = torch.stack([picture(40, 44, seed=k) for k in range(len(orders))])
    jittered = jitter_(images.float().contiguous(), Jitter(np.array(orders), factors))
    for k, order in enumerate(orders):
        exact, truncated = images[k] / 255, images[k]
        for change, factor in zip(order, factors[k].tolist(), strict=True):
            exact, truncated = changes[change](exact, factor), changes[change](truncated, factor)
        assert (jittered[k] - 255 * exact).abs().max() < 0.05
        difference = jittered[k] - truncated.float()
        assert difference.abs().max() <= 4
        assert difference.mean().abs() < 2


def test_jitter_distribution() -> None:
    """All orders are equally frequent; factors are uniform from 1 - j to 1 + j and not below 0."""
    jitter = draw_jitter(6000, 0.4, np.random.default_rng(0))
    shares = np.unique(jitter.order, axis=0, return_counts=True)[1] / 6000
    assert len(shares) == 6 and abs(shares - 1 / 6).max() < 0.02
    assert 0.6 <= jitter.factors.min() < 0.61 and 1.39 < jitter.factors.max() <= 1.4
    assert abs(np.histogram(jitter.factors, 8)[0] / 18000 - 1 / 8).max() < 0.01
    assert draw_jitter(1000, 1.0, np.random.default_rng(0)).factors.min() >= 0


def test_seed_determines_all_draws() -> None:
    recipe, sizes = get_recipe("efficientnet"), np.tile((90, 120), (400, 1))
    one, same, other = (draw(recipe, sizes, seed) for seed in (2**62, 2**62, 5))
    assert np.array_equal(one.boxes, same.boxes) and np.array_equal(one.flip, same.flip)
    assert one.jitter and same.jitter and np.array_equal(one.jitter.factors, same.jitter.factors)
    assert not np.array_equal(one.boxes, other.boxes)
    assert 0.4 < one.flip.mean() < 0.6
    assert draw(get_recipe("efficientnet", jitter=0.0, hflip=0.0), sizes, 1).jitter is None


def test_normalised_batches_are_channels_last() -> None:
    images = torch.stack([picture(9, 9, seed) for seed in range(3)]).float()
    expected = tv.normalize(images / 255, list(MEAN), list(STD))
    out = torch.empty(3, 3, 9, 9).to(memory_format=torch.channels_last)
    normalise_into(out, images.contiguous())
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    assert out.is_contiguous(memory_format=torch.channels_last)
