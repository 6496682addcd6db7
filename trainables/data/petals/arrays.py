"""Image sets that fit in memory, the built-in one among them. Opening one loads no torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from search_spaces.errors import RequestError
from trainables.data import IN_PROCESS, ImageData, Loader, Reading

if TYPE_CHECKING:
    import torch

    from trainables.recipe import Recipe


# Of the built-in set: 12 GB of pixels.
MOST = 1_000_000


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

    def swapped(self) -> "ArrayData":
        return ArrayData(self._val, self._train, self.class_names, self.fingerprint)


def petals(seed: int = 0, train: int = 2880, val: int = 960, cache: str | None = None) -> ArrayData:
    """The built-in set, memory-mapped from its cache."""
    from trainables.data.petals import images as made

    least = {"seed": (seed, 0), "train": (train, made.NUM_CLASSES), "val": (val, made.NUM_CLASSES)}
    for key, (value, lowest) in least.items():
        if not isinstance(value, int) or not lowest <= value <= MOST:
            raise RequestError(
                f"data.{key} = {value!r} of 'petals' must be a whole number from {lowest} to {MOST}"
            )
    arrays = made.load(cache, seed=seed, train=train, val=val)
    return ArrayData(
        (arrays.train_images, arrays.train_labels),
        (arrays.val_images, arrays.val_labels),
        made.CLASS_NAMES,
        made.fingerprint(seed, train, val),
    )
