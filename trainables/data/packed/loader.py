"""Batches from the packed store, without decoding.

The random numbers of a micro-batch depend on its seed alone. Created by ``PackedData.loader``.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from trainables.data import IN_PROCESS, Batch, Loader, MicroBatch, Reading
from trainables.data.augment import Jitter, augment_shift, draw, jitter_, normalise_into
from trainables.data.packed.resample import (
    Mode,
    Windows,
    centre_windows,
    crop_windows,
    resize_batched,
    resize_native,
)
from trainables.data.packed.shards import PackedPart
from trainables.recipe import Recipe

# Pixels that are augmented together on a CPU, so that they stay in a core's cache.
CACHED_PIXELS = 200_000
# Bytes of one padded batch, so that it uses little GPU memory.
CANVAS_BYTES = 64 * 2**20

Resample = Literal["auto", "native", "matmul"]
T = TypeVar("T")
R = TypeVar("R")


class Plan(NamedTuple):
    """How one micro-batch is read and augmented.

    ``shift`` is the seed of the recipe that shifts; None for other recipes.
    """

    indices: np.ndarray
    windows: Windows
    flip: np.ndarray
    mode: Mode = "bicubic"
    jitter: Jitter | None = None
    shift: int | None = None


class PackedLoader:
    """Crops, flips and colour jitter of complete micro-batches; ``reading.workers`` are threads.

    Args:
        resample: ``native`` resizes in the reading threads, ``matmul`` on the device. ``auto`` is
            ``native`` on a CPU and ``matmul`` elsewhere. The two differ by rounding. ``matmul``
            was tested on a CPU only.
    """

    def __init__(
        self,
        train: PackedPart,
        val: PackedPart,
        resolution: int,
        recipe: Recipe,
        device: torch.device,
        reading: Reading = IN_PROCESS,
        resample: Resample = "auto",
    ) -> None:
        self._pixels, self._recipe, self._device, self._reading = (
            resolution,
            recipe,
            device,
            reading,
        )
        self._matmul = resample == "matmul" or (resample == "auto" and device.type != "cpu")
        self._parts = {"train": Regions(train), "val": Regions(val)}

    def train(self, batches: Sequence[MicroBatch]) -> Iterator[Batch]:
        regions = self._parts["train"]
        return self._run(regions, batches, lambda batch: self._drawn(regions, batch))

    def val(self, batches: Sequence[np.ndarray]) -> Iterator[Batch]:
        regions, short = self._parts["val"], int(self._pixels / self._recipe.eval_ratio)
        return self._run(regions, batches, lambda indices: self._centred(regions, indices, short))

    def _drawn(self, regions: "Regions", batch: MicroBatch) -> Plan:
        if self._recipe.augment == "shift":
            return self._centred(regions, batch.indices, self._pixels)._replace(
                mode="bilinear", shift=batch.seed
            )
        draws = draw(self._recipe, regions.part.sizes[batch.indices], batch.seed)
        return Plan(
            batch.indices, crop_windows(draws.boxes, self._pixels), draws.flip, jitter=draws.jitter
        )

    def _centred(self, regions: "Regions", indices: np.ndarray, short: int) -> Plan:
        windows = centre_windows(regions.part.sizes[indices], short, self._pixels)
        return Plan(indices, windows, np.zeros(len(indices), bool))

    def _run(
        self, regions: "Regions", batches: Sequence[T], plan: Callable[[T], Plan]
    ) -> Iterator[Batch]:
        """Yield the batches.

        On a CPU the reading threads do all the work. For a GPU they gather the regions, and the
        consumer of the batch runs the rest on the device.
        """
        if not self._matmul:
            yield from prefetch(
                lambda batch: self._in_host(regions, plan(batch)), batches, self._reading.workers
            )
            return
        pinned = self._reading.pinned and self._device.type == "cuda"
        for planned, canvases in prefetch(
            lambda batch: _gathered(regions, plan(batch), pinned), batches, self._reading.workers
        ):
            with torch.autocast(self._device.type, enabled=False):
                batch = self._on_device(regions, planned, canvases)
            yield batch

    def _in_host(self, regions: "Regions", plan: Plan) -> Batch:
        n, pixels = len(plan.indices), self._pixels
        out = torch.empty((n, 3, pixels, pixels), memory_format=torch.channels_last)
        step = n if plan.shift is not None else max(1, CACHED_PIXELS // pixels**2)
        scratch = torch.empty((min(n, step), 3, pixels, pixels))
        for start in range(0, n, step):
            stop = min(n, start + step)
            images = scratch[: stop - start]
            for k in range(start, stop):
                region = regions.view(plan.indices[k], plan.windows.regions[k])
                small = resize_native(
                    region, plan.windows.scaled[k], plan.windows.offsets[k], pixels, plan.mode
                )
                images[k - start].copy_(small.flip(-1) if plan.flip[k] else small)
            self._finish(out[start:stop], images, plan, slice(start, stop))
        return self._labelled(out, regions, plan)

    def _on_device(self, regions: "Regions", plan: Plan, canvases: list[Tensor]) -> Batch:
        shape = (len(plan.indices), 3, self._pixels, self._pixels)
        out = torch.empty(shape, device=self._device, memory_format=torch.channels_last)
        done, start = [], 0
        for canvas in canvases:
            part = slice(start, start + len(canvas))
            windows = Windows(*(a[part] for a in plan.windows))
            images = resize_batched(
                canvas.to(self._device, non_blocking=True),
                windows,
                plan.flip[part],
                self._pixels,
                plan.mode,
            )
            if plan.shift is None:
                self._finish(out[part], images, plan, part)
            else:
                done.append(images)
            start = part.stop
        if done:
            self._finish(out, torch.cat(done), plan, slice(None))
        return self._labelled(out, regions, plan)

    def _finish(self, out: Tensor, images: Tensor, plan: Plan, part: slice) -> None:
        if plan.jitter is not None:
            jitter_(images, Jitter(*(a[part] for a in plan.jitter)))
        if plan.shift is not None:
            images = augment_shift(images, self._recipe, plan.shift)
        normalise_into(out, images)

    def _labelled(self, images: Tensor, regions: "Regions", plan: Plan) -> Batch:
        return images, torch.from_numpy(regions.part.labels[plan.indices]).to(
            self._device, non_blocking=True
        )


class Regions:
    """Views of the memory-mapped pixels of one split."""

    def __init__(self, part: PackedPart) -> None:
        self.part, self.maps = part, part.maps()
        with warnings.catch_warnings():
            # torch warns that a read-only array could be written to; nothing here writes.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self._flat = [torch.from_numpy(pixels) for pixels in self.maps]

    def view(self, index: int, region: np.ndarray) -> Tensor:
        """Return a region as a uint8 view (3, height, width), without a copy.

        Args:
            region: int (4,), top, left, height and width.
        """
        top, left, height, width = region.tolist()
        line = 3 * int(self.part.sizes[index, 1])
        start = int(self.part.starts[index]) + top * line + 3 * left
        return self._flat[self.part.shards[index]].as_strided(
            (3, height, width), (1, line, 3), start
        )


def _gathered(regions: Regions, plan: Plan, pinned: bool) -> tuple[Plan, list[Tensor]]:
    """Copy the regions of a plan into padded batches.

    Returns:
        The plan, and uint8 batches (m, height, width, 3) with the height and width of the largest
        region.
    """
    height, width = (int(side) for side in plan.windows.regions[:, 2:].max(0))
    n, step = len(plan.indices), max(1, CANVAS_BYTES // (height * width * 3))
    canvases = []
    for start in range(0, n, step):
        canvas = torch.empty(
            (min(step, n - start), height, width, 3), dtype=torch.uint8, pin_memory=pinned
        )
        for k, one in enumerate(canvas, start):
            region = regions.view(plan.indices[k], plan.windows.regions[k]).permute(1, 2, 0)
            one[: region.shape[0], : region.shape[1]].copy_(region)
        canvases.append(canvas)
    return plan, canvases


def prefetch(make: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """Yield ``make(item)`` for each item in order.

    Threads compute at most ``workers`` + 1 items ahead. Without workers each item is computed when
    the consumer requests it.
    """
    if not workers:
        yield from map(make, items)
        return
    pool, pending = ThreadPoolExecutor(workers, "packed"), deque[Future[R]]()
    try:
        for item in items:
            pending.append(pool.submit(make, item))
            if len(pending) > workers + 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def per_image(
    train: PackedPart,
    val: PackedPart,
    resolution: int,
    recipe: Recipe,
    device: torch.device,
    reading: Reading,
) -> Loader:
    """Return the per-image loader over the store, for augmentations that need PIL images."""
    from PIL import Image

    from trainables.data.per_image import PerImageLoader, Split

    def split(part: PackedPart) -> Split:
        regions = Regions(part)

        def image(index: int) -> Image.Image:
            region = np.array([0, 0, *part.sizes[index]])
            return Image.fromarray(regions.view(index, region).permute(1, 2, 0).numpy())

        return Split(image, part.labels)

    return PerImageLoader(split(train), split(val), resolution, recipe, device, reading)
