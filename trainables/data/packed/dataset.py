"""The packed store: images decoded once, as memory-mapped uint8 that all trials on a node read without a copy.

settings.json      what is packed, written first
train-00000.u8     the pixels of some images, (height, width, 3) each, one after the other
train-00000.npy    int32 (n, 4): number in the set, label, height and width of each; height 0 is an image that was skipped
unreadable.txt     only where a packing ended because of images that cannot be read: those, a line each
packed.json        classes, counts, digests, skipped images; written last, so with it the store is whole
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from search_spaces.errors import RequestError
from trainables.data import IN_PROCESS, ImageData, Loader, Reading
from trainables.data.packed.record import OtherVersionError, PackedRecord
from trainables.data.packed.shards import (
    AGAIN,
    EVAL_RATIO,
    HEIGHT,
    LABEL,
    NUMBER,
    PARTS,
    SETTINGS,
    WHOLE,
    WIDTH,
    DamagedShardError,
    PackedPart,
    Shard,
    bytes_of,
)
from trainables.storage.documents import parsed

if TYPE_CHECKING:
    import torch

    from trainables.recipe import Recipe


class PackedData(ImageData):
    """A store that ``tinynet data pack`` made.

    Attributes:
        largest_pixels: the resolution above which evaluation enlarges what was shrunk in packing.
        skipped: names of the images that could not be read when the set was packed.
    """

    def __init__(self, path: str) -> None:
        root = Path(path).expanduser()
        record = _record(root)
        self.class_names: Sequence[str] = record.class_names
        self.fingerprint = record.fingerprint
        self.skipped: Sequence[str] = record.skipped
        self.largest_pixels = int(record.settings.short_side * EVAL_RATIO)
        self.train, self.val = (_part(root, part, record.shards[part]) for part in PARTS)
        self.train_size, self.val_size = len(self.train.labels), len(self.val.labels)
        if [self.train_size, self.val_size] != [record.counts[part] for part in PARTS]:
            raise RequestError(f"packed data {str(root)!r}: {WHOLE} was changed: {AGAIN}")

    def loader(
        self,
        resolution: int,
        recipe: "Recipe",
        device: "torch.device",
        reading: Reading = IN_PROCESS,
    ) -> Loader:
        from trainables.data.packed.loader import PackedLoader, per_image

        if recipe.randaugment:
            return per_image(self.train, self.val, resolution, recipe, device, reading)
        return PackedLoader(self.train, self.val, resolution, recipe, device, reading)

    def swapped(self) -> "PackedData":
        other = copy.copy(self)
        other.train, other.val = self.val, self.train
        other.train_size, other.val_size = self.val_size, self.train_size
        return other


def _record(root: Path) -> PackedRecord:
    if not root.is_dir():
        raise RequestError(
            f"packed data {str(root)!r} does not exist: make it with tinynet data pack --data DIR --out {root}"
        )
    try:
        return PackedRecord.from_json(parsed((root / WHOLE).read_text()))
    except FileNotFoundError:
        if (root / SETTINGS).exists():
            raise RequestError(f"packed data {str(root)!r} is not finished: {AGAIN}") from None
        raise RequestError(
            f"{str(root)!r} is no packed set: make one with tinynet data pack --data DIR --out ANOTHER"
        ) from None
    except OtherVersionError:
        raise RequestError(
            f"packed data {str(root)!r} was packed by another version of this program: pack it again, into a new folder"
        ) from None
    except ValueError:
        raise RequestError(f"packed data {str(root)!r}: {WHOLE} is damaged: {AGAIN}") from None


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
