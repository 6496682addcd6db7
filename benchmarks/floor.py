"""Lower bound on the time per training image, from the machine's arithmetic and memory rates.

``train_speed`` compares the measured throughput with it.

Arithmetic: the forward pass, the gradient of the input and the gradient of the weights each take
``Network.macs`` multiply-adds of two operations, at the rate of the fastest matrix product measured
on this machine. Depthwise convolutions never approach that rate, which is one reason why no
training reaches the bound.

Memory: each convolution's output y (``Network.activations`` counts the elements) needs at least
seven passes over the whole map, even with every other operation fused into a convolution:

1. The convolution writes y and computes batch norm's sums at the same time.
2. The next convolution reads y, normalises it and applies the activation.
3. In the backward pass, that convolution reads y again for the gradient of its weights.
4. It writes the gradient of y. Batch norm needs the sums of that gradient before it can be
   propagated further.
5. The convolution that computed y therefore reads the gradient once more.
6. It also reads y once more.
7. The activation's derivative in step 4 reads y too.

Eager PyTorch makes about twice as many passes. The memory rate is that of a triad over the number
of bytes in the feature maps of one batch, so maps that fit a cache are counted at the cache's rate.

Arithmetic and memory transfers can overlap, so the bound is the larger of the two times.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from search_spaces import Network

# (rows, input channels, output channels) of B0's pointwise convolutions over 8192 pixels.
POINTWISE = ((8192, 16, 96), (8192, 40, 240), (8192, 192, 1152))
MAX_BYTES = 512 * 2**20
PASSES = 7
PRODUCTS_PER_IMAGE = 3


class Floor(NamedTuple):
    """Lower bounds on the seconds per training image."""

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
    """The lower bound of a network trained in batches of ``batch``.

    Args:
        flops: operations per second, as ``matmul_rate`` measures them.
    """
    elements = network.activations * dtype.itemsize
    memory = PASSES * elements / triad_rate(batch * elements, device, dtype)
    return Floor(PRODUCTS_PER_IMAGE * 2 * network.macs / flops, memory)


def square(device: torch.device) -> tuple[int, int, int]:
    """The shape of a matrix product that is large enough for the device's best rate."""
    side = 8192 if device.type == "cuda" else 1024
    return side, side, side


def matmul_rate(shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of the product of (rows, in) and (in, out).

    A multiply-add counts as two operations.
    """
    rows, inner, columns = shape
    a, b = (torch.rand(size, device=device).to(dtype) for size in ((rows, inner), (inner, columns)))
    out = torch.empty((rows, columns), device=device, dtype=dtype)
    return 2 * rows * inner * columns / min_seconds(lambda: torch.mm(a, b, out=out), device)


def triad_rate(total: int, device: torch.device, dtype: torch.dtype) -> float:
    """Bytes per second that a = b + c reads and writes.

    Args:
        total: bytes of the three arrays together; at most 512 MB are used.
    """
    count = max(1024, min(total, MAX_BYTES) // (3 * dtype.itemsize))
    a, b, c = (torch.ones(count, device=device, dtype=dtype) for _ in range(3))
    return 3 * count * dtype.itemsize / min_seconds(lambda: torch.add(b, c, out=a), device)


def min_seconds(call: Callable[[], object], device: torch.device, budget: float = 0.3) -> float:
    """The minimum of several timings of a call.

    Each timing repeats a short call for about 20 ms. All timings together take about ``budget``
    seconds.
    """
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
    """Block until the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
