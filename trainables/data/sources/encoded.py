"""Sets of encoded images (JPEG, PNG, ...), wherever their bytes lie: files, tar files, Parquet shards."""

import errno
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.data import IN_PROCESS, ImageData, Loader, Reading

if TYPE_CHECKING:
    import torch

    from trainables.recipe import Recipe


# Pillow's modes of more than 8 bits a colour, which it would cut off to white.
DEEP = {
    "I;16": "16 bits a pixel",
    "I;16B": "16 bits a pixel",
    "I": "32 bits a pixel",
    "F": "floating-point pixels",
}


class UnreadableImageError(RuntimeError):
    """An image that cannot be decoded; the message names it."""


@dataclass(frozen=True)
class Part:
    """The encoded images of one split.

    Attributes:
        names: ``class/.../file`` of each, sorted; the same whatever the images are kept in.
        labels: int64 (n,). sizes: bytes of each, int64 (n,).
        read: an image's bytes by its index; picklable, for loader processes. Raises OSError.
        place: where an image lies, for messages.
    """

    names: Sequence[str]
    labels: np.ndarray
    sizes: np.ndarray
    read: Callable[[int], bytes]
    place: Callable[[int], str]

    def image(self, index: int) -> Any:
        """The decoded RGB PIL image.

        Raises:
            UnreadableImageError: the image's own fault.
            OSError: the storage's fault (stale handle, too many files, ...).
        """
        try:
            data = self.read(index)
        except FileNotFoundError as error:
            raise UnreadableImageError(
                f"image {self.place(index)!r} cannot be read: {error}"
            ) from error
        return decoded(data, self.place(index))


def decoded(data: bytes, place: str) -> Any:
    """RGB PIL image of encoded bytes.

    Raises:
        UnreadableImageError: they are no image, or a damaged one.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode in DEEP:
                raise ValueError(f"it has {DEEP[image.mode]}, and 8 bits a colour are expected")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise
        said = str(error).partition(" <_io")[0]  # Pillow names the buffer by its address
        raise UnreadableImageError(f"image {place!r} cannot be read: {said}") from error


class EncodedData(ImageData):
    """Images that are decoded one at a time, when they are wanted."""

    def __init__(
        self, class_names: Sequence[str], train: Part, val: Part, fingerprint: str
    ) -> None:
        self.class_names, self.fingerprint = class_names, fingerprint
        self.train, self.val = train, val
        self.train_size, self.val_size = len(train.labels), len(val.labels)

    def loader(
        self,
        resolution: int,
        recipe: "Recipe",
        device: "torch.device",
        reading: Reading = IN_PROCESS,
    ) -> Loader:
        from trainables.data.per_image import PerImageLoader, Split

        train, val = (Split(part.image, part.labels) for part in (self.train, self.val))
        return PerImageLoader(train, val, resolution, recipe, device, reading)

    def swapped(self) -> "EncodedData":
        return EncodedData(self.class_names, self.val, self.train, self.fingerprint)
