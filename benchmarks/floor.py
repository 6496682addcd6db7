"""The least time that a training image can take on this machine, from its measured arithmetic and memory rates.

Arithmetic: forward, the gradient of the input and the gradient of the weights are each as many multiply-adds as the
network's ``macs``, of two operations each, at the rate of the fastest matrix product measured here. Depthwise
convolutions never come near that rate, which is one reason why no training reaches the floor.

Memory: of each convolution's output y (``Network.activations`` counts their elements) at least seven passes over the
whole map are needed, with every other operation fused into a convolution: y is written, with batch norm's sums taken on
the way (1); the next convolution reads it and normalises and activates on the way (2); backwards, that convolution
reads it again for the gradient of its weights (3) and writes the gradient (4), whose sums batch norm needs before the
gradient can go on, so the gradient and y are read once more by the convolution that made y (5, 6); and the activation's
derivative beside (4) takes y too (7). Eager PyTorch makes about twice as many. The rate is a triad's over as many bytes as
the feature maps of one batch hold, so maps that fit a cache are counted at the cache's rate.

Arithmetic and memory can overlap, so the floor is the larger of the two and nothing can be faster.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from search_spaces import Network

# Rows, channels in and channels out of B0's pointwise convolutions over 8192 pixels.
POINTWISE = ((8192, 16, 96), (8192, 40, 240), (8192, 192, 1152))
MOST_BYTES = 512 * 2**20
PASSES = 7
PRODUCTS_AN_IMAGE = 3


class Floor(NamedTuple):
    """Seconds that one training image takes at least."""

    arithmetic: float
    memory: float

    @property
    def seconds(self) -> float:
        return max(self)

    @property
    def bound(self) -> str:
        return "arithmetic" if self.arithmetic >= self.memory else "memory"


def floor(
    network: Network, batch: int, flops: float, device: torch.device, dtype: torch.dtype
) -> Floor:
    """The floor of a network trained in batches of ``batch``; ``flops`` a second as ``matmul_rate`` measures them."""
    elements = network.activations * dtype.itemsize
    memory = PASSES * elements / triad_rate(batch * elements, device, dtype)
    return Floor(PRODUCTS_AN_IMAGE * 2 * network.macs / flops, memory)


def square(device: torch.device) -> tuple[int, int, int]:
    """A product large enough for the device's best rate."""
    side = 8192 if device.type == "cuda" else 1024
    return side, side, side


def matmul_rate(shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the product of (rows, in) and (in, out), two for each multiply-add."""
    rows, inner, columns = shape
    a, b = (torch.rand(size, device=device).to(dtype) for size in ((rows, inner), (inner, columns)))
    out = torch.empty((rows, columns), device=device, dtype=dtype)
    return 2 * rows * inner * columns / least_seconds(lambda: torch.mm(a, b, out=out), device)


def triad_rate(total: int, device: torch.device, dtype: torch.dtype) -> float:
    """Bytes a second of a = b + c, read and written, over three arrays of ``total`` bytes together (at most 512 MB)."""
    count = max(1024, min(total, MOST_BYTES) // (3 * dtype.itemsize))
    a, b, c = (torch.ones(count, device=device, dtype=dtype) for _ in range(3))
    return 3 * count * dtype.itemsize / least_seconds(lambda: torch.add(b, c, out=a), device)


def least_seconds(call: Callable[[], object], device: torch.device, budget: float = 0.3) -> float:
    """The least of several timings of a call, each over as many repeats as take some milliseconds."""
    call()
    once = _timed(call, 1, device)
    repeats = max(1, min(10_000, int(0.02 / once)))
    return min(_timed(call, repeats, device) for _ in range(max(3, int(budget / (once * repeats)))))


def _timed(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    wait(device)
    return (time.perf_counter() - started) / repeats


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
