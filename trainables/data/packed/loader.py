"""Batches from the packed store: nothing is decoded, and all of a micro-batch's randomness comes from its seed."""

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from trainables.data import IN_PROCESS, Batch, Loader, MicroBatch, Reading
from trainables.data.augment import Jitter, augmented, draw, jitter_, normalise_into
from trainables.data.packed.resample import Mode, Windows, batched, centres, crops, native
from trainables.data.packed.shards import PackedPart
from trainables.recipe import Recipe

# Images that are augmented together: as many as stay in a core's cache, or use little of a GPU's memory.
CACHED_PIXELS, CANVAS_BYTES = 200_000, 64 * 2**20

Resample = Literal["auto", "native", "matmul"]
T = TypeVar("T")
R = TypeVar("R")


class Plan(NamedTuple):
    """One micro-batch before any pixel is touched; ``shift`` is the seed of the recipe that shifts."""

    indices: np.ndarray
    windows: Windows
    flip: np.ndarray
    mode: Mode = "bicubic"
    jitter: Jitter | None = None
    shift: int | None = None


class PackedLoader:
    """Crops, flips and colour jitter of whole micro-batches; ``reading.workers`` are threads.

    Args:
        resample: ``native`` resizes in the reading threads and ``matmul`` on the device; ``auto`` is native on a CPU.
            The two differ by rounding. ``matmul`` was tried on a CPU only.
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
            batch.indices, crops(draws.boxes, self._pixels), draws.flip, jitter=draws.jitter
        )

    def _centred(self, regions: "Regions", indices: np.ndarray, short: int) -> Plan:
        windows = centres(regions.part.sizes[indices], short, self._pixels)
        return Plan(indices, windows, np.zeros(len(indices), bool))

    def _run(
        self, regions: "Regions", batches: Sequence[T], plan: Callable[[T], Plan]
    ) -> Iterator[Batch]:
        """On a CPU all work is the threads'; for a GPU they gather regions, and the rest is done where the batch is wanted."""
        if not self._matmul:
            yield from prefetched(
                lambda batch: self._in_host(regions, plan(batch)), batches, self._reading.workers
            )
            return
        pinned = self._reading.pinned and self._device.type == "cuda"
        for planned, canvases in prefetched(
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
                small = native(
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
            images = batched(
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
            images = augmented(images, self._recipe, plan.shift)
        normalise_into(out, images)

    def _labelled(self, images: Tensor, regions: "Regions", plan: Plan) -> Batch:
        return images, torch.from_numpy(regions.part.labels[plan.indices]).to(
            self._device, non_blocking=True
        )


class Regions:
    """Views of a part's memory-mapped pixels."""

    def __init__(self, part: PackedPart) -> None:
        self.part, self.maps = part, part.maps()
        with warnings.catch_warnings():
            # torch warns that it would write into what may only be read; nothing here writes.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self._flat = [torch.from_numpy(pixels) for pixels in self.maps]

    def view(self, index: int, region: np.ndarray) -> Tensor:
        """uint8 (3, height, width) of a region's top, left, height and width: no pixel is copied."""
        top, left, height, width = region.tolist()
        line = 3 * int(self.part.sizes[index, 1])
        start = int(self.part.starts[index]) + top * line + 3 * left
        return self._flat[self.part.shards[index]].as_strided(
            (3, height, width), (1, line, 3), start
        )


def _gathered(regions: Regions, plan: Plan, pinned: bool) -> tuple[Plan, list[Tensor]]:
    """The plan, and its regions in padded batches, uint8 (m, height, width, 3) of the largest region."""
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


def prefetched(make: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """What ``make`` gives for each item, in order, at most ``workers`` + 1 ahead; without workers when it is asked for."""
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
    """The general loader over the store, for augmentations that work on PIL images."""
    from PIL import Image

    from trainables.data.per_image import PerImageLoader, Split

    def split(part: PackedPart) -> Split:
        regions = Regions(part)

        def image(index: int) -> Image.Image:
            whole = np.array([0, 0, *part.sizes[index]])
            return Image.fromarray(regions.view(index, whole).permute(1, 2, 0).numpy())

        return Split(image, part.labels)

    return PerImageLoader(split(train), split(val), resolution, recipe, device, reading)
