"""Antialiased resizing of image regions of different sizes to squares of one resolution.

There are two implementations of the same resampling. On a CPU torch's uint8 kernel resizes one
region at a time. On a GPU the regions are in one padded batch and two batched matrix products
resize them all; this one is tested on a CPU and was not run on a GPU.

Called by the loader of the packed store.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Mode = Literal["bicubic", "bilinear"]
# Half the width of the filter, in pixels of the coarser of the two grids.
SUPPORT: dict[Mode, int] = {"bicubic": 2, "bilinear": 1}


class Windows(NamedTuple):
    """Image regions, their scaled sizes, and the square to cut out of each scaled region.

    Attributes:
        regions: int64 (n, 4), top, left, height and width in the image.
        scaled: int64 (n, 2), height and width of the region after scaling.
        offsets: int64 (n, 2), top and left of the square in the scaled region.
    """

    regions: np.ndarray
    scaled: np.ndarray
    offsets: np.ndarray


def crop_windows(boxes: np.ndarray, pixels: int) -> Windows:
    """Return the windows that scale each box, int64 (n, 4), to a full square."""
    return Windows(boxes, np.full((len(boxes), 2), pixels), np.zeros((len(boxes), 2), np.int64))


def centre_windows(sizes: np.ndarray, short: int, pixels: int) -> Windows:
    """Return the windows of the central squares of images of ``sizes``, int64 (n, 2).

    The short side of each image is scaled to ``short`` >= ``pixels`` first.
    """
    # torchvision's rounding: Resize truncates the long side, and CenterCrop rounds its offset half
    # to even.
    scaled = np.where(
        sizes == sizes.min(1, keepdims=True),
        short,
        np.floor(short * sizes / sizes.min(1, keepdims=True)),
    )
    regions = np.concatenate((np.zeros_like(sizes), sizes), 1)
    return Windows(
        regions, scaled.astype(np.int64), np.rint((scaled - pixels) / 2).astype(np.int64)
    )


def resize_native(
    region: Tensor, scaled: np.ndarray, offset: np.ndarray, pixels: int, mode: Mode
) -> Tensor:
    """Resize one uint8 region (3, h, w) to uint8 (3, pixels, pixels).

    It is fastest if the region is a view of interleaved (h, w, 3) pixels.
    """
    height, width = int(scaled[0]), int(scaled[1])
    resized = functional.interpolate(region[None], (height, width), mode=mode, antialias=True)[0]
    if height == width == pixels:
        return resized
    top, left = int(offset[0]), int(offset[1])
    return resized[:, top : top + pixels, left : left + pixels]


def resize_batched(
    canvas: Tensor, windows: Windows, flip: np.ndarray, pixels: int, mode: Mode
) -> Tensor:
    """Resize the regions of a padded batch with two matrix products.

    Along each axis resizing is linear, so a weight matrix per region maps source to target pixels.
    A flip reverses the rows of the horizontal matrix.

    Args:
        canvas: uint8 (n, h, w, 3); each region is at the top left of its image. The padding does
            not affect the result.
        flip: bool (n,), whether to flip a region horizontally.

    Returns:
        float32 (n, 3, pixels, pixels), rounded to integers from 0 to 255.
    """
    n, height, width, _ = canvas.shape
    device = canvas.device
    sizes, scaled, offsets = (
        torch.from_numpy(np.asarray(a, np.float32)).to(device)
        for a in (windows.regions[:, 2:], *windows[1:])
    )
    down = weights(sizes[:, 0], scaled[:, 0], offsets[:, 0], pixels, height, mode)
    across = weights(sizes[:, 1], scaled[:, 1], offsets[:, 1], pixels, width, mode)
    across = torch.where(torch.from_numpy(flip).to(device)[:, None, None], across.flip(1), across)
    rows = torch.bmm(down, canvas.view(n, height, width * 3).float()).view(n, pixels, width, 3)
    planes = rows.permute(0, 3, 1, 2).reshape(n, 3 * pixels, width)
    return (
        torch.bmm(planes, across.transpose(1, 2)).view(n, 3, pixels, pixels).round_().clamp_(0, 255)
    )


def weights(
    size: Tensor, scaled: Tensor, offset: Tensor, pixels: int, extent: int, mode: Mode
) -> Tensor:
    """Return the weight of each source pixel in each target pixel, float32 (n, pixels, extent).

    This is the antialiased filter of Pillow and torch: its width grows with the scale, and pixels
    outside the region have weight 0. Rows sum to 1.

    Args:
        size, scaled, offset: (n,) size of the region in source pixels, size after scaling, and
            first scaled pixel of the square.
        pixels: number of target pixels.
        extent: number of source pixels of the padded batch.
    """
    scale = (size / scaled)[:, None, None]
    target = torch.arange(pixels, device=size.device)[None, :, None] + offset[:, None, None] + 0.5
    source = torch.arange(extent, device=size.device)[None, None, :] + 0.5
    distance = (source - target * scale).abs_() / scale.clamp(min=1)
    weight = _cubic(distance) if mode == "bicubic" else (1 - distance).clamp_(min=0)
    weight = weight.masked_fill_(source > size[:, None, None], 0)
    return weight / weight.sum(-1, keepdim=True)


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Return the cubic convolution kernel with parameter ``a`` at distances ``x`` >= 0."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < SUPPORT["bicubic"], far, 0))
