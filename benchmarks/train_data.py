"""Training from the packed store compared with timm's pipeline over the same JPEG files.

Run by ``python -m benchmarks.run train_data``.

The store is packed from real JPEGs (``benchmarks/jpegs.py``); timm's loop and loader are those of
``benchmarks/timm_reference.py``. On a CPU both read in the training's own thread, as a search with
one core per trial does. On a GPU both use one reader (a thread of ours, a process of timm's) for
each of the other cores. Reading alone is measured without extra readers, so its figures are per
core. The measurements that are compared alternate.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data.dataset_factory import create_dataset
from timm.data.transforms import RandomResizedCropAndInterpolation

from benchmarks.jpegs import make_tree
from benchmarks.measure import Row, in_turns, ratio
from benchmarks.synthetic import Ready, ready_batch
from benchmarks.timm_reference import TimmLoop, timm_loader
from benchmarks.train_speed import RECIPE, benchmark_settings, rate
from benchmarks.turns import Turns, in_turns_with
from search_spaces import Network, get_space
from trainables.data import MicroBatch, Reading
from trainables.data.augment import draw
from trainables.data.packed.dataset import PackedData
from trainables.data.packed.loader import Regions
from trainables.data.packed.packing import Packing
from trainables.data.packed.resample import crop_windows, resize_native
from trainables.data.packed.shards import short_side
from trainables.data.sources.imagefolder import ImageFolderData
from trainables.execution import Execution
from trainables.recipe import Recipe, get_recipe
from trainables.trainer import pick_device

TURNS = 5
# Large enough for the search's largest r; ``tinynet data pack`` computes it in the same way.
SHORT_SIDE = short_side(round(1.7 * 224))
CLASSES = 24
BATCH = 32
READ_PIXELS = (106, 224)


class Trees(NamedTuple):
    """The same pictures as JPEG files and as a packed store."""

    files: Path
    packed: PackedData


def run() -> list[Row]:
    device = pick_device()
    with tempfile.TemporaryDirectory() as scratch, benchmark_settings():
        photos = make_trees(
            Path(scratch) / "photos", 288 if device.type == "cpu" else 4096, photos=True
        )
        small = make_trees(
            Path(scratch) / "small", 960 if device.type == "cpu" else 16384, photos=False
        )
        demo = get_space("efficientnet_mini").network((1, 1, 1))
        e = get_space("efficientnet_b0").network((0.475, 0.6, 0.51), CLASSES)
        target = 1.5 if device.type == "cpu" else 1.3
        return [
            *_trained("demo's network, 64 px files", demo, small, device, target),
            *_trained(f"TinyNet-E at {e.resolution} px, 500 x 375 files", e, photos, device, None),
            *(row for pixels in READ_PIXELS for row in _read(pixels, photos)),
            _limit(e, photos, device),
        ]


def make_trees(root: Path, train: int, *, photos: bool) -> Trees:
    """Write the JPEG files (see ``make_tree``) and pack them."""
    make_tree(root / "files", train, CLASSES, photos=photos)
    Packing(ImageFolderData(str(root / "files")), root / "packed", SHORT_SIDE).pack(1, "fail")
    return Trees(root / "files", PackedData(str(root / "packed")))


def _trained(
    name: str, network: Network, trees: Trees, device: torch.device, target: float | None
) -> list[Row]:
    turns = trained(network, trees, device)
    return [
        Row(f"trained, {name}: ours from the packed store", turns.trainer_rate, "images/s"),
        Row(f"trained, {name}: timm's from JPEGs", turns.other_rate, "images/s"),
        Row(f"trained, {name}: ours / timm's", turns.ratio, "times", target, "above"),
    ]


def trained(network: Network, trees: Trees, device: torch.device, turns: int = TURNS) -> Turns:
    """Alternate the ``Trainer`` with timm's loop, both with their reading included."""
    workers, recipe = readers(device), recipe_of(turns + 1, device)
    execution = Execution(compile="off", loader_workers=workers)
    loop = TimmLoop(network, recipe, device, compiled=False, bf16=execution.resolve(device).bf16)
    loader = timm_loader(trees.files, network.resolution, recipe, device, workers)
    images = trees.packed.train_size // recipe.batch * recipe.batch
    return in_turns_with(
        lambda: rate(images, device, lambda: loop.train(loader)),
        network,
        recipe,
        trees.packed,
        execution,
    )


def recipe_of(epochs: int, device: torch.device) -> Recipe:
    batch = BATCH if device.type == "cpu" else 16 * BATCH
    return get_recipe(RECIPE, batch=batch, micro_batch=batch, epochs=epochs)


def readers(device: torch.device) -> int:
    return 0 if device.type == "cpu" else max(1, len(os.sched_getaffinity(0)) - 1)


def _read(pixels: int, trees: Trees) -> list[Row]:
    """Compare reading alone, on one CPU core.

    One comparison ends at the bytes of a resized crop, the other at a batch for the network.
    """
    recipe = recipe_of(1, torch.device("cpu"))
    crop = RandomResizedCropAndInterpolation(pixels, interpolation="bicubic")
    files: Any = create_dataset("", root=str(trees.files), split="train", transform=crop)
    timm_batches = timm_loader(trees.files, pixels, recipe, torch.device("cpu"), 0)
    count = trees.packed.train_size
    crops: Mapping[str, Callable[[], None]] = {
        "timm": lambda: _consume(
            np.asarray(image) for image, _ in (files[i] for i in range(count))
        ),
        "ours": lambda: _cropped(trees.packed, pixels, recipe),
    }
    batches: Mapping[str, Callable[[], None]] = {
        "timm": lambda: _consume(timm_batches),
        "ours": lambda: packed_pass(trees.packed, pixels, recipe),
    }
    return [
        *_compared(f"read at {pixels} px, a resized crop", crops, count, 8.0),
        *_compared(
            f"read at {pixels} px, a batch with flip and jitter",
            batches,
            count // BATCH * BATCH,
            8.0,
        ),
    ]


def _cropped(data: PackedData, pixels: int, recipe: Recipe) -> None:
    """Make the same random crops as bytes, one image at a time."""
    regions = Regions(data.train)
    plan = crop_windows(draw(recipe, data.train.sizes, 0).boxes, pixels)
    for i in range(data.train_size):
        resize_native(
            regions.view(i, plan.regions[i]), plan.scaled[i], plan.offsets[i], pixels, "bicubic"
        )


def _compared(
    name: str, calls: Mapping[str, Callable[[], None]], count: int, target: float | None
) -> list[Row]:
    times = in_turns(calls, TURNS)
    return [
        Row(f"{name}: packed, a core", count / min(times["ours"]), "images/s"),
        Row(f"{name}: timm's from JPEGs, a core", count / min(times["timm"]), "images/s"),
        Row(f"{name}: packed / JPEGs", ratio(times, "timm", "ours"), "times", target, "above"),
    ]


def packed_pass(
    data: PackedData,
    pixels: int,
    recipe: Recipe,
    device: torch.device | None = None,
    workers: int = 0,
) -> None:
    """Read the training images once."""
    loader = data.loader(
        pixels, recipe, device or torch.device("cpu"), Reading(workers, device is not None)
    )
    _consume(loader.train(batches_of(data.train_size, recipe.micro_batch)))


def batches_of(images: int, size: int) -> Sequence[MicroBatch]:
    """Shuffled micro-batches; the incomplete last one is dropped."""
    order = np.random.default_rng(0).permutation(images)
    return [
        MicroBatch(order[start : start + size], start)
        for start in range(0, images - size + 1, size)
    ]


def _consume(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def _limit(network: Network, trees: Trees, device: torch.device) -> Row:
    """Training throughput with reading, as a share of the throughput on preloaded images."""
    recipe, workers = recipe_of(TURNS + 1, device), readers(device)
    count = trees.packed.train_size // recipe.batch * recipe.batch

    def read() -> None:
        packed_pass(trees.packed, network.resolution, recipe, device, workers)

    ready = Ready(
        ready_batch(network, recipe.batch, device), max(2, count // recipe.batch // 2), CLASSES
    )
    turns = in_turns_with(
        lambda: rate(count, device, read), network, recipe, ready, Execution(compile="off")
    )
    where = "on the same core" if device.type == "cpu" else "with reading threads"
    name = f"trained with reading {where} / on ready images, TinyNet-E at {network.resolution} px"
    return Row(
        name,
        100 * remaining_share(1 / turns.ratio, parallel=device.type != "cpu"),
        "%",
        90.0,
        "above",
    )


def remaining_share(read: float, *, parallel: bool) -> float:
    """The share of the training throughput that remains when reading is added.

    Args:
        read: speed of reading alone divided by the speed of training alone.
        parallel: whether other threads or processes read; if not, reading and training alternate.
    """
    return min(1.0, read) if parallel else read / (1 + read)
