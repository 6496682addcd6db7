"""Image sets that fit in memory, including the built-in one.

Opened by ``open_data`` for the data name ``petals``, without importing torch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from search_spaces.errors import RequestError
from trainables.data import IN_PROCESS, ImageData, Loader, Reading

if TYPE_CHECKING:
    import torch

    from trainables.recipe import Recipe


# Maximum size of the built-in set: 12 GB of pixels.
MAX_IMAGES = 1_000_000


class ArrayData(ImageData):
    """Square images in memory (or memory-mapped): uint8 (n, side, side, 3), labels int64 (n,)."""

    def __init__(
        self,
        train: tuple[np.ndarray, np.ndarray],
        val: tuple[np.ndarray, np.ndarray],
        class_names: Sequence[str],
        fingerprint: str,
    ) -> None:
        self._train, self._val = train, val
        self.class_names, self.fingerprint = class_names, fingerprint
        self.train_size, self.val_size = len(train[1]), len(val[1])

    def loader(
        self,
        resolution: int,
        recipe: "Recipe",
        device: "torch.device",
        reading: Reading = IN_PROCESS,
    ) -> Loader:
        if recipe.augment == "paper":
            from PIL import Image

            from trainables.data.per_image import PerImageLoader, Split

            def split(images: np.ndarray, labels: np.ndarray) -> Split:
                return Split(lambda i: Image.fromarray(images[i]), labels)

            return PerImageLoader(
                split(*self._train), split(*self._val), resolution, recipe, device, reading
            )
        from trainables.data.petals.loader import ArrayLoader

        return ArrayLoader(self._train, self._val, resolution, recipe, device)

    def swap_splits(self) -> "ArrayData":
        return ArrayData(self._val, self._train, self.class_names, self.fingerprint)


def petals(seed: int = 0, train: int = 2880, val: int = 960, cache: str | None = None) -> ArrayData:
    """Return the built-in set, memory-mapped from its cache."""
    from trainables.data.petals import images

    options = {
        "seed": (seed, 0),
        "train": (train, images.NUM_CLASSES),
        "val": (val, images.NUM_CLASSES),
    }
    for key, (value, minimum) in options.items():
        if not isinstance(value, int) or not minimum <= value <= MAX_IMAGES:
            raise RequestError(
                f"data.{key} of 'petals': expected an integer from {minimum} to {MAX_IMAGES}, "
                f"got {value!r}"
            )
    arrays = images.load(cache, seed=seed, train=train, val=val)
    return ArrayData(
        (arrays.train_images, arrays.train_labels),
        (arrays.val_images, arrays.val_labels),
        images.CLASS_NAMES,
        images.fingerprint(seed, train, val),
    )
