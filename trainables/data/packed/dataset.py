"""The packed store: images decoded once to memory-mapped uint8, shared by all trials on a node.

Opened by ``open_data`` for the data name ``packed``. A store consists of these files:

settings.json      the source and the packing settings; written first
train-00000.u8     the pixels of the images of one shard, (height, width, 3) each, concatenated
train-00000.npy    int32 (n, 4): number in the set, label, height and width of each image;
                   height 0 marks a skipped image
unreadable.txt     the images that cannot be read, one per line; exists only if they ended a packing
packed.json        classes, counts, digests and skipped images; written last, so that a store that
                   has it is complete
"""

import copy
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from search_spaces.errors import RequestError
from trainables.data import IN_PROCESS, ImageData, Loader, Reading
from trainables.data.ignored import SKIPPED, IgnoredFiles
from trainables.data.packed.record import OtherVersionError, PackedRecord
from trainables.data.packed.shards import (
    EVAL_RATIO,
    HEIGHT,
    LABEL,
    NUMBER,
    PARTS,
    RECORD_FILE,
    RERUN_HINT,
    SETTINGS_FILE,
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
    """A packed store, as written by ``tinynet data pack``.

    Attributes:
        largest_pixels: the resolution above which evaluation enlarges images that packing shrank.
        skipped: names of the images that could not be read during packing.
    """

    def __init__(self, path: str) -> None:
        root = Path(path).expanduser()
        record = _record(root)
        self.class_names: Sequence[str] = record.class_names
        self.fingerprint = record.fingerprint
        self.skipped: Sequence[str] = record.skipped
        if record.skipped:
            self.ignored = (IgnoredFiles(SKIPPED, len(record.skipped), record.skipped[0]),)
        self.largest_pixels = int(record.settings.short_side * EVAL_RATIO)
        self.train, self.val = (_part(root, part, record.shards[part]) for part in PARTS)
        self.train_size, self.val_size = len(self.train.labels), len(self.val.labels)
        if [self.train_size, self.val_size] != [record.counts[part] for part in PARTS]:
            raise RequestError(
                f"packed data {str(root)!r}: {RECORD_FILE} was changed: {RERUN_HINT}"
            )

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

    def swap_splits(self) -> "PackedData":
        other = copy.copy(self)
        other.train, other.val = self.val, self.train
        other.train_size, other.val_size = self.val_size, self.train_size
        return other


def _record(root: Path) -> PackedRecord:
    if not root.is_dir():
        raise RequestError(
            f"packed data {str(root)!r} does not exist: "
            f"create it with tinynet data pack --data DIR --out {shlex.quote(str(root.absolute()))}"
        )
    try:
        return PackedRecord.from_json(parsed((root / RECORD_FILE).read_text()))
    except FileNotFoundError:
        if (root / SETTINGS_FILE).exists():
            raise RequestError(f"packed data {str(root)!r} is not finished: {RERUN_HINT}") from None
        raise RequestError(
            f"{str(root)!r} is not a packed set: "
            "create one with tinynet data pack --data DIR --out NEW_DIR"
        ) from None
    except OtherVersionError:
        raise RequestError(
            f"packed data {str(root)!r} was packed by another version of this program: "
            "pack it again into a new folder"
        ) from None
    except ValueError:
        raise RequestError(
            f"packed data {str(root)!r}: {RECORD_FILE} is damaged: {RERUN_HINT}"
        ) from None


def _part(root: Path, part: str, digests: Sequence[str]) -> PackedPart:
    indexes, files, shards, starts = [], [], [], []
    for number, digest in enumerate(digests):
        shard = Shard.at(root, part, number)
        try:
            index = shard.read(digest)
        except DamagedShardError as error:
            raise RequestError(f"packed data {str(root)!r}: {error}: {RERUN_HINT}") from error
        index = index[index[:, HEIGHT] > 0]
        if not len(index):
            continue
        sizes = bytes_of(index)
        indexes.append(index)
        shards.append(np.full(len(index), len(files)))
        starts.append(np.cumsum(sizes) - sizes)
        files.append(shard.pixels)
    index = np.concatenate([np.zeros((0, 4), np.int32), *indexes]).astype(np.int64)
    order = np.argsort(index[:, NUMBER])
    shard_of, start_of = (
        np.concatenate([np.zeros(0, np.int64), *arrays])[order] for arrays in (shards, starts)
    )
    return PackedPart(
        index[order, LABEL], index[order][:, [HEIGHT, WIDTH]], shard_of, start_of, files
    )
