"""Sets of encoded images (JPEG, PNG, ...), independent of where the bytes are stored.

Base of the data sets ``imagefolder``, ``imagenet`` and ``parquet``, and the input of packing.
"""

import errno
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.data import IN_PROCESS, ImageData, Loader, Reading
from trainables.data.ignored import IgnoredFiles

if TYPE_CHECKING:
    import torch

    from trainables.recipe import Recipe


# Pillow's modes with more than 8 bits per colour, whose conversion to RGB clips them to white.
UNSUPPORTED_MODES = {
    "I;16": "16 bits per pixel",
    "I;16B": "16 bits per pixel",
    "I;16L": "16 bits per pixel",
    "I;16N": "16 bits per pixel",
    "I": "16 or 32 bits per pixel",
    "F": "floating-point pixels",
}


class UnreadableImageError(RuntimeError):
    """An image that cannot be decoded; the message names it."""


@dataclass(frozen=True)
class Part:
    """The encoded images of one split.

    Attributes:
        names: ``class/.../file`` of each image, sorted; independent of the storage format.
        labels: int64 (n,).
        sizes: int64 (n,), size of each image in bytes.
        read: returns the bytes of the image with an index; picklable for loader processes. Raises
            OSError.
        place: returns the location of the image with an index, for messages.
    """

    names: Sequence[str]
    labels: np.ndarray
    sizes: np.ndarray
    read: Callable[[int], bytes]
    place: Callable[[int], str]

    def image(self, index: int) -> Any:
        """Return the decoded RGB PIL image.

        Raises:
            UnreadableImageError: The image is damaged or missing.
            OSError: The storage failed (stale handle, too many open files, ...).
        """
        try:
            data = self.read(index)
        except FileNotFoundError as error:
            raise UnreadableImageError(
                f"image {self.place(index)!r} cannot be read: {error}"
            ) from error
        return decode_image(data, self.place(index))


def decode_image(data: bytes, place: str) -> Any:
    """Decode bytes to an RGB PIL image.

    Raises:
        UnreadableImageError: The bytes are not an image, or a damaged one.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode in UNSUPPORTED_MODES:
                raise ValueError(f"expected 8 bits per colour, got {UNSUPPORTED_MODES[image.mode]}")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise
        # Pillow appends the repr of the buffer, which contains its address.
        reason = str(error).partition(" <_io")[0]
        raise UnreadableImageError(f"image {place!r} cannot be read: {reason}") from error


class EncodedData(ImageData):
    """A data set that decodes one image at a time, on access."""

    def __init__(
        self,
        class_names: Sequence[str],
        train: Part,
        val: Part,
        fingerprint: str,
        ignored: Sequence[IgnoredFiles] = (),
    ) -> None:
        self.class_names, self.fingerprint, self.ignored = class_names, fingerprint, ignored
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

    def swap_splits(self) -> "EncodedData":
        return EncodedData(self.class_names, self.val, self.train, self.fingerprint, self.ignored)
