"""Antialiased resizing of regions of many images, each of its own size, to squares of the same pixels.

Two ways to the same picture. On a CPU torch's own kernel for uint8 takes one region after the other. On a GPU the
regions lie in one padded batch and two batched matrix products resize them all; that way is tested on a CPU, and was
not run on a GPU.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Mode = Literal["bicubic", "bilinear"]
# Half the width of a filter, in pixels of the coarser of the two grids.
SUPPORT: dict[Mode, int] = {"bicubic": 2, "bilinear": 1}


class Windows(NamedTuple):
    """Regions of images, what they are scaled to, and where the wanted square lies in that.

    Attributes:
        regions: int64 (n, 4), top, left, height and width in the image.
        scaled: int64 (n, 2), height and width of the region after scaling.
        offsets: int64 (n, 2), top and left of the square in the scaled region.
    """

    regions: np.ndarray
    scaled: np.ndarray
    offsets: np.ndarray


def crops(boxes: np.ndarray, pixels: int) -> Windows:
    """Each box, int64 (n, 4), as a whole square."""
    return Windows(boxes, np.full((len(boxes), 2), pixels), np.zeros((len(boxes), 2), np.int64))


def centres(sizes: np.ndarray, short: int, pixels: int) -> Windows:
    """The central square of images of ``sizes``, int64 (n, 2), whose short side is scaled to ``short`` >= ``pixels``."""
    # torchvision's rounding: Resize cuts the long side, CenterCrop rounds the corner to even.
    scaled = np.where(
        sizes == sizes.min(1, keepdims=True),
        short,
        np.floor(short * sizes / sizes.min(1, keepdims=True)),
    )
    regions = np.concatenate((np.zeros_like(sizes), sizes), 1)
    return Windows(
        regions, scaled.astype(np.int64), np.rint((scaled - pixels) / 2).astype(np.int64)
    )


def native(
    region: Tensor, scaled: np.ndarray, offset: np.ndarray, pixels: int, mode: Mode
) -> Tensor:
    """uint8 (3, pixels, pixels) of one uint8 region (3, h, w), which is fastest as a view of interleaved colours."""
    height, width = int(scaled[0]), int(scaled[1])
    whole = functional.interpolate(region[None], (height, width), mode=mode, antialias=True)[0]
    if height == width == pixels:
        return whole
    top, left = int(offset[0]), int(offset[1])
    return whole[:, top : top + pixels, left : left + pixels]


def batched(canvas: Tensor, windows: Windows, flip: np.ndarray, pixels: int, mode: Mode) -> Tensor:
    """Whole grey levels as float32 (n, 3, pixels, pixels), flipped where asked, of regions in a padded batch.

    Args:
        canvas: uint8 (n, h, w, 3); each region lies at its image's top left, what is beside it does not matter.
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
    """The share of each source pixel in each target pixel, float32 (n, pixels, extent); rows sum to 1.

    Pillow's and torch's antialiased filter: it widens with the scale, and what lies outside the region has no share.

    Args:
        size, scaled, offset: (n,) source pixels of the region, pixels it is scaled to, and the first of these that is wanted.
    """
    scale = (size / scaled)[:, None, None]
    target = torch.arange(pixels, device=size.device)[None, :, None] + offset[:, None, None] + 0.5
    source = torch.arange(extent, device=size.device)[None, None, :] + 0.5
    away = (source - target * scale).abs_() / scale.clamp(min=1)
    share = _cubic(away) if mode == "bicubic" else (1 - away).clamp_(min=0)
    share = share.masked_fill_(source > size[:, None, None], 0)
    return share / share.sum(-1, keepdim=True)


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < SUPPORT["bicubic"], far, 0))
