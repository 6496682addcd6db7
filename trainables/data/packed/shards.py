"""Shards of a packed store: their files, checked when they are read, and the images of one part in them.

Called by packing, by the data set and by its loader.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VERSION = 1
SETTINGS, WHOLE = "settings.json", "packed.json"
PARTS = ("train", "val")
# Section 4.1's evaluation resizes the short side to pixels / EVAL_RATIO.
EVAL_RATIO = 0.875
NUMBER, LABEL, HEIGHT, WIDTH = range(4)
AGAIN = "run the same tinynet data pack command again"


@dataclass(frozen=True)
class Shard:
    """The two files of some images of a part."""

    pixels: Path
    index: Path

    @classmethod
    def at(cls, root: Path, part: str, number: int) -> "Shard":
        return cls(*(root / f"{part}-{number:05d}.{end}" for end in ("u8", "npy")))

    def read(self, digest: str | None = None) -> np.ndarray:
        """The index, int32 (n, 4).

        Raises:
            DamagedShardError: a file is missing, or not as long as it must be, or the index is not the one of ``digest``.
        """
        try:
            data = np.load(self.index)
            size = self.pixels.stat().st_size
        except (OSError, ValueError, EOFError) as error:
            missing = isinstance(error, FileNotFoundError)
            name = Path(str(error.filename)).name if missing else self.index.name
            raise DamagedShardError(f"{name} is {'missing' if missing else 'no index'}") from error
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
                f"{self.pixels.name} has {size} bytes where its index says {needed}"
            )
        return data


class DamagedShardError(RuntimeError):
    """A shard that is not as it was written; the message names the file."""


def index_digest(index: np.ndarray) -> str:
    return hashlib.sha256(index.tobytes()).hexdigest()[:16]


def bytes_of(index: np.ndarray) -> np.ndarray:
    return index[:, HEIGHT].astype(np.int64) * index[:, WIDTH] * 3


def short_side(pixels: int) -> int:
    """The least short side that evaluation at ``pixels`` does not enlarge."""
    return -int(-pixels // EVAL_RATIO)


def kept_size(width: int, height: int, short: int) -> tuple[int, int]:
    """Width and height with a short side of ``short``; a smaller image keeps its own."""
    now = min(width, height)
    return (
        (width, height)
        if now <= short
        else (max(1, round(width * short / now)), max(1, round(height * short / now)))
    )


@dataclass(frozen=True)
class PackedPart:
    """Where the images of one split lie.

    Attributes:
        labels: int64 (n,). sizes: int64 (n, 2), heights and widths.
        shards, starts: int64 (n,), an image's file and its first byte in it.
        files: the files with pixels.
    """

    labels: np.ndarray
    sizes: np.ndarray
    shards: np.ndarray
    starts: np.ndarray
    files: Sequence[Path]

    def maps(self) -> list[np.memmap]:
        """The pixels of every file, uint8, memory-mapped read-only: one copy in memory for all who read it."""
        return [np.memmap(file, np.uint8, "r") for file in self.files]
