"""Shards of a packed store: file names, validated reads, and the images of one split.

Called by packing, by the data set and by its loader.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VERSION = 1
SETTINGS_FILE, RECORD_FILE = "settings.json", "packed.json"
PARTS = ("train", "val")
# Section 4.1's evaluation resizes the short side to pixels / EVAL_RATIO.
EVAL_RATIO = 0.875
NUMBER, LABEL, HEIGHT, WIDTH = range(4)
RERUN_HINT = "run the same tinynet data pack command again"


@dataclass(frozen=True)
class Shard:
    """The two files of a shard: the pixels and the index of consecutive images of a split."""

    pixels: Path
    index: Path

    @classmethod
    def at(cls, root: Path, part: str, number: int) -> "Shard":
        return cls(*(root / f"{part}-{number:05d}.{end}" for end in ("u8", "npy")))

    def read(self, digest: str | None = None) -> np.ndarray:
        """Read the index, int32 (n, 4).

        Raises:
            DamagedShardError: A file is missing or has the wrong size, or the index does not match
                ``digest``.
        """
        try:
            data = np.load(self.index)
            size = self.pixels.stat().st_size
        except (OSError, ValueError, EOFError) as error:
            missing = isinstance(error, FileNotFoundError)
            name = Path(str(error.filename)).name if missing else self.index.name
            raise DamagedShardError(
                f"{name} is {'missing' if missing else 'not an index'}"
            ) from error
        if (
            data.ndim != 2
            or data.shape[1] != 4
            or data.dtype != np.int32
            or (digest and digest != index_digest(data))
        ):
            raise DamagedShardError(f"{self.index.name} was changed")
        needed = int(bytes_of(data).sum())
        if size != needed:
            raise DamagedShardError(
                f"{self.pixels.name} has {size} bytes, expected {needed} by its index"
            )
        return data


class DamagedShardError(RuntimeError):
    """A shard is missing or was changed; the message names the file."""


def index_digest(index: np.ndarray) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of an index."""
    return hashlib.sha256(index.tobytes()).hexdigest()[:16]


def bytes_of(index: np.ndarray) -> np.ndarray:
    """Return the size of each image's pixels in bytes, int64 (n,)."""
    return index[:, HEIGHT].astype(np.int64) * index[:, WIDTH] * 3


def short_side(pixels: int) -> int:
    """Return the smallest short side that evaluation at ``pixels`` does not enlarge."""
    return -int(-pixels // EVAL_RATIO)


def kept_size(width: int, height: int, short: int) -> tuple[int, int]:
    """Return width and height scaled to a short side of ``short``.

    Smaller images keep their size.
    """
    current = min(width, height)
    if current <= short:
        return width, height
    return max(1, round(width * short / current)), max(1, round(height * short / current))


@dataclass(frozen=True)
class PackedPart:
    """The location of the images of one split in the shards.

    Attributes:
        labels: int64 (n,).
        sizes: int64 (n, 2), heights and widths.
        shards: int64 (n,), index into ``files`` of each image.
        starts: int64 (n,), offset of the first byte of each image in its file.
        files: the files with pixels.
    """

    labels: np.ndarray
    sizes: np.ndarray
    shards: np.ndarray
    starts: np.ndarray
    files: Sequence[Path]

    def maps(self) -> list[np.memmap]:
        """Memory-map the uint8 pixels of every file read-only.

        All processes on a node share one copy in memory.
        """
        return [np.memmap(file, np.uint8, "r") for file in self.files]
