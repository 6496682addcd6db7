"""Batched augmentation against torchvision's, and two ways of resizing against each other."""

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
from trainables.data.packed.resample import Mode, Windows, batched, centres, crops, native
from trainables.recipe import get_recipe

pytestmark = pytest.mark.quick

BICUBIC = v2.InterpolationMode.BICUBIC


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth colours with some noise, uint8 (3, height, width), interleaved as the store keeps them."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(128, 50, (1, 3, 6, 7)))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    noisy = smooth + torch.from_numpy(rng.normal(0, 6, (1, height, width)))
    return noisy.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().permute(2, 0, 1)


def canvas_of(pictures: list[Tensor], boxes: np.ndarray) -> Tensor:
    """The regions in a batch padded with what must not matter."""
    canvas = torch.randint(
        0, 256, (len(pictures), *boxes[:, 2:].max(0).tolist(), 3), dtype=torch.uint8
    )
    for one, image, (top, left, height, width) in zip(
        canvas, pictures, boxes.tolist(), strict=True
    ):
        one[:height, :width] = image[:, top : top + height, left : left + width].permute(1, 2, 0)
    return canvas


@pytest.mark.parametrize("size", [(375, 500), (64, 64), (60, 240), (500, 90)])
def test_crops_are_spread_as_torchvisions(size: tuple[int, int]) -> None:
    """3000 boxes each with fixed seeds: Kolmogorov-Smirnov finds no difference; at 1:4 and beyond both fall back at times."""
    count = 3000
    ours = crop_boxes(np.tile(size, (count, 1)), np.random.default_rng(0))
    torch.manual_seed(0)
    transform, blank = v2.RandomResizedCrop(8, antialias=True), torch.zeros(3, *size)
    drawn = [transform.make_params([blank]) for _ in range(count)]
    theirs = np.array([[d[k] for k in ("top", "left", "height", "width")] for d in drawn])
    assert (
        (ours[:, :2] >= 0).all()
        and (ours[:, :2] + ours[:, 2:] <= size).all()
        and (ours[:, 2:] > 0).all()
    )
    for name, of in {
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "bottom": lambda b: b[:, 0] + b[:, 2],
    }.items():
        found: Any = ks_2samp(of(ours), of(theirs))
        assert found.pvalue > 0.01, name


def test_an_image_too_narrow_for_any_try_gives_torchvisions_central_crop() -> None:
    for size in ((10, 400), (400, 10)):
        params = v2.RandomResizedCrop(8, scale=(0.9, 1), antialias=True).make_params(
            [torch.zeros(3, *size)]
        )
        boxes = crop_boxes(np.tile(size, (50, 1)), np.random.default_rng(0))
        wanted = [params[k] for k in ("top", "left", "height", "width")]
        assert wanted in boxes.tolist()


@pytest.mark.parametrize("pixels", [24, 57])
def test_crop_and_flip_are_torchvisions_to_the_pixel(pixels: int) -> None:
    image = picture(90, 120)
    for top, left, height, width in crop_boxes(
        np.tile((90, 120), (12, 1)), np.random.default_rng(1)
    ).tolist():
        region = image[:, top : top + height, left : left + width]
        ours = native(region, np.array([pixels, pixels]), np.zeros(2, int), pixels, "bicubic").flip(
            -1
        )
        cropped = tv.resized_crop(
            image, top, left, height, width, [pixels, pixels], interpolation=BICUBIC, antialias=True
        )
        assert torch.equal(ours, tv.horizontal_flip(cropped))


@pytest.mark.parametrize("size", [(90, 120), (121, 80), (75, 75), (70, 301)])
@pytest.mark.parametrize("ratio", [0.875, 1.0])
def test_the_centre_is_resize_and_centre_crop_to_the_pixel(
    size: tuple[int, int], ratio: float
) -> None:
    image, short = picture(*size), int(56 / ratio)
    windows = centres(np.array([size]), short, 56)
    ours = native(image, windows.scaled[0], windows.offsets[0], 56, "bicubic")
    theirs = v2.Compose(
        [v2.Resize(short, interpolation=BICUBIC, antialias=True), v2.CenterCrop(56)]
    )(image)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("pixels", [20, 70])
def test_matrix_products_give_the_native_picture(mode: Mode, pixels: int) -> None:
    """Within 2 grey levels, .3 in the mean: the native kernel rounds between rows and columns, with 8-bit weights."""
    sizes = np.array([(90, 120), (60, 50), (131, 97), (40, 40)])
    pictures = [picture(*size, seed=k) for k, size in enumerate(sizes.tolist())]
    flip = np.array([True, False, True, False])
    for windows in (
        crops(crop_boxes(sizes, np.random.default_rng(3)), pixels),
        centres(sizes, pixels + 9, pixels),
    ):
        ours = batched(canvas_of(pictures, windows.regions), windows, flip, pixels, mode)
        theirs = []
        for k, (top, left, height, width) in enumerate(windows.regions.tolist()):
            region = pictures[k][:, top : top + height, left : left + width]
            one = native(region, windows.scaled[k], windows.offsets[k], pixels, mode)
            theirs.append(one.flip(-1) if flip[k] else one)
        off = (ours - torch.stack(theirs).float()).abs()
        assert off.max() <= 2
        assert off.mean() < 0.3


def test_weights_do_not_see_beyond_the_region() -> None:
    """A white region in a black frame stays white to its edge."""
    canvas = torch.zeros(1, 50, 50, 3, dtype=torch.uint8)
    canvas[:, :30, :20] = 255
    boxes = np.array([[0, 0, 30, 20]])
    assert (batched(canvas, crops(boxes, 12), np.array([False]), 12, "bicubic") == 255).all()
    assert Windows(*crops(boxes, 12)).scaled.tolist() == [[12, 12]]


def test_jitter_is_torchvisions_in_every_order() -> None:
    """Of floats within a twentieth of a grey level; of uint8, where torchvision cuts each change off to whole levels, within 4."""
    changes = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    orders = [(a, b, 3 - a - b) for a in range(3) for b in range(3) if a != b]
    factors = np.random.default_rng(0).uniform(0.6, 1.4, (len(orders), 3))
    images = torch.stack([picture(40, 44, seed=k) for k in range(len(orders))])
    ours = jitter_(images.float().contiguous(), Jitter(np.array(orders), factors))
    for k, order in enumerate(orders):
        exact, whole = images[k] / 255, images[k]
        for change, factor in zip(order, factors[k].tolist(), strict=True):
            exact, whole = changes[change](exact, factor), changes[change](whole, factor)
        assert (ours[k] - 255 * exact).abs().max() < 0.05
        off = ours[k] - whole.float()
        assert off.abs().max() <= 4
        assert off.mean().abs() < 2


def test_jitters_spread() -> None:
    """Every order equally often; factors even between 1 - j and 1 + j, never below 0."""
    jitter = draw_jitter(6000, 0.4, np.random.default_rng(0))
    shares = np.unique(jitter.order, axis=0, return_counts=True)[1] / 6000
    assert len(shares) == 6 and abs(shares - 1 / 6).max() < 0.02
    assert 0.6 <= jitter.factors.min() < 0.61 and 1.39 < jitter.factors.max() <= 1.4
    assert abs(np.histogram(jitter.factors, 8)[0] / 18000 - 1 / 8).max() < 0.01
    assert draw_jitter(1000, 1.0, np.random.default_rng(0)).factors.min() >= 0


def test_a_seed_decides_everything() -> None:
    recipe, sizes = get_recipe("efficientnet"), np.tile((90, 120), (400, 1))
    one, same, other = (draw(recipe, sizes, seed) for seed in (2**62, 2**62, 5))
    assert np.array_equal(one.boxes, same.boxes) and np.array_equal(one.flip, same.flip)
    assert one.jitter and same.jitter and np.array_equal(one.jitter.factors, same.jitter.factors)
    assert not np.array_equal(one.boxes, other.boxes)
    assert 0.4 < one.flip.mean() < 0.6
    assert draw(get_recipe("efficientnet", jitter=0.0, hflip=0.0), sizes, 1).jitter is None


def test_normalised_batches_are_channels_last() -> None:
    images = torch.stack([picture(9, 9, seed) for seed in range(3)]).float()
    wanted = tv.normalize(images / 255, list(MEAN), list(STD))
    out = torch.empty(3, 3, 9, 9).to(memory_format=torch.channels_last)
    normalise_into(out, images.contiguous())
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=0)
    assert out.is_contiguous(memory_format=torch.channels_last)
