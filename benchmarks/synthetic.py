"""Stand-ins for measuring training alone: a preloaded batch and a folder that stores nothing.

``train_speed``, ``train_data``, ``turns`` and the GPU checks use them.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from search_spaces import Network
from trainables.data import IN_PROCESS, Batch, ImageData, MicroBatch, Reading
from trainables.recipe import Recipe
from trainables.spec import TrialSpec

if TYPE_CHECKING:
    from trainables.storage.folder import Folder


def ready_batch(network: Network, size: int, device: torch.device) -> Batch:
    """A batch on the device: Gaussian noise and random labels.

    Returns:
        images: (size, 3, resolution, resolution), channels_last.
        labels: (size,).
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, network.resolution, network.resolution, generator=generator)
    labels = torch.randint(network.num_classes, (size,), generator=generator)
    return images.to(device).contiguous(memory_format=torch.channels_last), labels.to(device)


class Ready(ImageData):
    """Yields the same preloaded batch at every step; the validation set is that batch once."""

    fingerprint = "ready"

    def __init__(self, batch: Batch, steps: int, num_classes: int) -> None:
        self.batch = batch
        self.class_names = [str(k) for k in range(num_classes)]
        self.val_size = len(batch[1])
        self.train_size = steps * self.val_size

    def loader(
        self, resolution: int, recipe: Recipe, device: torch.device, reading: Reading = IN_PROCESS
    ) -> "Ready":
        return self

    def train(self, batches: Sequence[MicroBatch]) -> Iterator[Batch]:
        return (self.batch for _ in batches)

    def val(self, batches: Sequence[np.ndarray]) -> Iterator[Batch]:
        return (
            (self.batch[0][: len(indices)], self.batch[1][: len(indices)]) for indices in batches
        )

    def swap_splits(self) -> "Ready":
        return self


class NullFolder:
    """A folder that discards every file, which keeps disk writes out of the measurement."""

    url = "null"

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        raise FileNotFoundError(name)

    def write(self, name: str, data: bytes) -> None:
        return None

    def write_once(self, name: str, data: bytes) -> bool:
        return True

    def exists(self, name: str) -> bool:
        return False

    def names(self, below: str = "") -> list[str]:
        return []

    def remove(self, name: str) -> None:
        return None

    def sub(self, name: str) -> "Folder":
        return self

    def sweep(self) -> None:
        return None


def spec_of(network: Network, recipe: Recipe, data: ImageData) -> TrialSpec:
    """The trial spec of a network on a data set that is already open."""
    return TrialSpec(
        network.space.name,
        network.space.version,
        network.rdw,
        network.num_classes,
        recipe,
        {},
        data.fingerprint,
        seed=0,
    )
