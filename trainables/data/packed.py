"""The packed store: images decoded once, as memory-mapped uint8 that all trials on a node read without a copy.

settings.json      what is packed, written first
train-00000.u8     the pixels of some images, (height, width, 3) each, one after the other
train-00000.npy    int32 (n, 4): number in the set, label, height and width of each; height 0 is an image that was skipped
unreadable.txt     only where a packing ended because of images that cannot be read: those, a line each
packed.json        classes, counts, digests, skipped images; written last, so with it the store is whole
"""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from search_spaces.errors import RequestError
from trainables.data import IN_PROCESS, ImageData, Loader, Reading

if TYPE_CHECKING:
    import torch

    from trainables.recipe import Recipe

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
            or (digest and digest != digest_of(data))
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


def digest_of(index: np.ndarray) -> str:
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


class PackedData(ImageData):
    """A store that ``tinynet data pack`` made.

    Attributes:
        largest_pixels: the resolution above which evaluation enlarges what was shrunk in packing.
        skipped: names of the images that could not be read when the set was packed.
    """

    def __init__(self, path: str) -> None:
        root = Path(path).expanduser()
        record = _record(root)
        self.class_names: Sequence[str] = record["class_names"]
        self.fingerprint: str = record["fingerprint"]
        self.skipped: Sequence[str] = record["skipped"]
        self.largest_pixels = int(record["short_side"] * EVAL_RATIO)
        self.train, self.val = (_part(root, part, record["shards"][part]) for part in PARTS)
        self.train_size, self.val_size = len(self.train.labels), len(self.val.labels)
        if [self.train_size, self.val_size] != [record["counts"][part] for part in PARTS]:
            raise RequestError(f"packed data {str(root)!r}: {WHOLE} was changed: {AGAIN}")

    def loader(
        self,
        resolution: int,
        recipe: "Recipe",
        device: "torch.device",
        reading: Reading = IN_PROCESS,
    ) -> Loader:
        from trainables.data.packed_loader import PackedLoader, per_image

        if recipe.randaugment:
            return per_image(self.train, self.val, resolution, recipe, device, reading)
        return PackedLoader(self.train, self.val, resolution, recipe, device, reading)

    def swapped(self) -> "PackedData":
        other = copy.copy(self)
        other.train, other.val = self.val, self.train
        other.train_size, other.val_size = self.val_size, self.train_size
        return other


def _record(root: Path) -> dict[str, Any]:
    if not root.is_dir():
        raise RequestError(
            f"packed data {str(root)!r} does not exist: make it with tinynet data pack --data DIR --out {root}"
        )
    try:
        record = json.loads((root / WHOLE).read_text())
    except FileNotFoundError:
        if (root / SETTINGS).exists():
            raise RequestError(f"packed data {str(root)!r} is not finished: {AGAIN}") from None
        raise RequestError(
            f"{str(root)!r} is no packed set: make one with tinynet data pack --data DIR --out ANOTHER"
        ) from None
    except ValueError:
        raise RequestError(f"packed data {str(root)!r}: {WHOLE} is damaged: {AGAIN}") from None
    if record.get("version") != VERSION:
        raise RequestError(
            f"packed data {str(root)!r} was packed by another version of this program: pack it again, into a new folder"
        )
    return record


def _part(root: Path, part: str, digests: Sequence[str]) -> PackedPart:
    found, files, shards, starts = [], [], [], []
    for number, digest in enumerate(digests):
        shard = Shard.at(root, part, number)
        try:
            index = shard.read(digest)
        except DamagedShardError as error:
            raise RequestError(f"packed data {str(root)!r}: {error}: {AGAIN}") from error
        index = index[index[:, HEIGHT] > 0]
        if not len(index):
            continue
        sizes = bytes_of(index)
        found.append(index)
        shards.append(np.full(len(index), len(files)))
        starts.append(np.cumsum(sizes) - sizes)
        files.append(shard.pixels)
    index = np.concatenate([np.zeros((0, 4), np.int32), *found]).astype(np.int64)
    order = np.argsort(index[:, NUMBER])
    lies, begins = (np.concatenate([np.zeros(0, np.int64), *a])[order] for a in (shards, starts))
    return PackedPart(index[order, LABEL], index[order][:, [HEIGHT, WIDTH]], lies, begins, files)
