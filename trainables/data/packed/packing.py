"""Packing of a data set: images are decoded and shrunk once and stored as raw pixels.

Called by ``tinynet data pack``. ``dataset.py`` documents the files. Each shard is written to
temporary files that are renamed, its index last. An interrupted packing resumes with the missing
shards.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from search_spaces.errors import RequestError
from trainables.data.packed.files import folder_lock, write_file
from trainables.data.packed.record import PackedRecord, PackingSettings, PackingState
from trainables.data.packed.shards import (
    HEIGHT,
    LABEL,
    NUMBER,
    PARTS,
    RECORD_FILE,
    SETTINGS_FILE,
    VERSION,
    DamagedShardError,
    Shard,
    bytes_of,
    index_digest,
    kept_size,
)
from trainables.data.packed.workers import (
    PackingError,
    PackingJob,
    ShardResult,
    Task,
    UnreadableImagesError,
    write_shards,
)
from trainables.data.sources.encoded import EncodedData, Part
from trainables.data.sources.imagefolder import fingerprint
from trainables.storage.documents import parsed

# Small shards balance the work, and an interruption repeats little of it. The number of files is
# limited because a reader keeps each one open.
MIN_SHARD_IMAGES, MAX_SHARDS = 512, 400
# Image headers that are read per split to estimate the size.
SAMPLE_SIZE = 1000
UNREADABLE = "unreadable.txt"
OnError = Literal["fail", "skip"]


@dataclass
class Packing:
    """The packing of a set into a folder.

    Attributes:
        data: the source set.
        root: the folder of the packed set.
        short_side: the short side, in pixels, to which larger images are shrunk.
        shard_images: number of images per shard; None derives it from the size of the set.
        parts: the source's images by split.
        settings: the settings that are written to ``settings.json``.
    """

    data: EncodedData
    root: Path
    short_side: int
    shard_images: int | None = None
    parts: dict[str, Part] = field(init=False)
    settings: PackingSettings = field(init=False)

    def __post_init__(self) -> None:
        self.parts = {"train": self.data.train, "val": self.data.val}
        sizes = (self.data.train_size, self.data.val_size)
        shard_images = self.shard_images or max(MIN_SHARD_IMAGES, -(-max(sizes) // MAX_SHARDS))
        self.settings = PackingSettings(
            self.data.fingerprint, self.short_side, *sizes, shard_images
        )

    def missing_shards(self, on_error: OnError) -> list[Task]:
        """Return the shards that are missing or damaged.

        A shard that lacks images counts as missing unless unreadable images are to be skipped.

        Raises:
            RequestError: The folder holds other files, or a packing of another set or with other
                settings.
        """
        repaired = self._check_settings()
        record = self.packed()
        if on_error == "fail" and record and record.skipped:
            skipped = record.skipped
            raise RequestError(
                f"{str(self.root)!r} was packed without {len(skipped)} images that cannot be read "
                f"({skipped[0]}, ...): pass --on-error skip to keep it, or pack into a new folder"
            )
        digests = record.shards if record else {}
        allow_gaps = on_error == "skip" and not repaired
        return [
            task
            for task in self.settings.tasks()
            if not self._is_complete(task, digests, allow_gaps)
        ]

    def pack(
        self,
        workers: int,
        on_error: OnError,
        report: Callable[[ShardResult], None] = lambda done: None,
    ) -> PackedRecord:
        """Write the missing shards, then ``packed.json``, and return its record.

        Raises:
            RequestError: As for ``missing_shards``, or another packing is running in the folder.
            PackingError: Images cannot be read, the storage failed, or a worker process was killed.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(
                f"folder {str(self.root)!r} cannot be created ({error.strerror}): "
                "pass another --out"
            ) from error
        with folder_lock(self.root):
            missing = self.missing_shards(on_error)
            if missing:
                (self.root / RECORD_FILE).unlink(missing_ok=True)
            if self._check_settings() or not (self.root / SETTINGS_FILE).exists():
                self._write_settings({})
            unreadable: dict[str, str] = {}
            for done in write_shards(
                PackingJob(self.parts, self.root, self.short_side), missing, workers
            ):
                unreadable |= done.unreadable
                report(done)
            if unreadable and on_error == "fail":
                raise self._unreadable_error(unreadable)
            record = self._finish()
            self._write_settings({})
            (self.root / UNREADABLE).unlink(missing_ok=True)
            return record

    def packed(self) -> PackedRecord | None:
        """Return the record in ``packed.json``; None if it is missing or damaged.

        Packing writes the file again in both cases.
        """
        try:
            return PackedRecord.from_json(parsed((self.root / RECORD_FILE).read_text()))
        except (OSError, ValueError):
            return None

    def _unreadable_error(self, unreadable: dict[str, str]) -> UnreadableImagesError:
        """Record the unreadable images for the user and for the next run, and return the error."""
        file = self.root / UNREADABLE
        lines = [
            " ".join(f"{name} ({reason})".split()) for name, reason in sorted(unreadable.items())
        ]
        write_file(file, "".join(f"{line}\n" for line in lines).encode())
        self._write_settings(self._sizes(unreadable))
        examples = ", ".join(lines[:3]) + (
            f", ... (all in {file})" if len(lines) > 3 else f" (also in {file})"
        )
        count = f"{len(lines)} images" if len(lines) > 1 else "1 image"
        message = (
            f"{count} cannot be read: {examples}: pass --on-error skip to pack without them, or "
            "fix them and run the same command again (the other images are packed)"
        )
        return UnreadableImagesError(message, lines, file)

    def _lost_class_error(self, lost: Sequence[str], skipped: Collection[str]) -> PackingError:
        """Record the skipped images for the next run, and return the error."""
        self._write_settings(self._sizes(set(skipped)))
        others = f" and {len(lost) - 1} other classes" if len(lost) > 1 else ""
        return PackingError(
            f"no image of class {lost[0]}{others} can be read: fix these images and run the same "
            "command again, or remove the class from both splits and pack into a new folder"
        )

    def _sizes(self, images: Collection[str]) -> dict[str, int]:
        """Return the size in bytes of each of the images ``split/class/file``."""
        sizes = (
            (f"{split}/{name}", int(size))
            for split, part in self.parts.items()
            for name, size in zip(part.names, part.sizes, strict=True)
        )
        return {name: size for name, size in sizes if name in images}

    def _write_settings(self, unreadable: dict[str, int]) -> None:
        """Write ``settings.json``, with the size in bytes of each image that could not be read."""
        state = PackingState(self.settings, unreadable)
        write_file(self.root / SETTINGS_FILE, json.dumps(state.to_json(), indent=1).encode())

    def _only_unreadable_changed(self, state: PackingState) -> bool:
        """Whether the source differs from the packed one only in images that were unreadable.

        The fingerprint covers names and sizes. With the old sizes of the unreadable images it must
        equal the fingerprint that was packed.
        """

        def source(old_sizes: Mapping[str, int]) -> str:
            content: list[list[tuple[str, int]]] = []
            for split, part in self.parts.items():
                sizes: list[int] = part.sizes.tolist()
                content.append(
                    [
                        (name, old_sizes.get(f"{split}/{name}", size))
                        for name, size in zip(part.names, sizes, strict=True)
                    ]
                )
            return fingerprint(self.settings.source.rpartition("-")[0], content)

        # The first comparison fails for sets with another kind of fingerprint (Parquet).
        return (
            bool(state.unreadable)
            and source({}) == self.settings.source
            and source(state.unreadable) == state.settings.source
        )

    def _check_settings(self) -> bool:
        """Check ``settings.json`` against these settings.

        Returns:
            Whether the folder holds a packing of the same images before some were repaired.

        Raises:
            RequestError: As for ``missing_shards``.
        """
        try:
            state = PackingState.from_json(json.loads((self.root / SETTINGS_FILE).read_text()))
        except NotADirectoryError:
            raise RequestError(f"{str(self.root)!r} is a file: pass a folder as --out") from None
        except FileNotFoundError:
            if self.root.is_dir() and any(
                not entry.name.startswith(".") for entry in self.root.iterdir()
            ):
                raise RequestError(
                    f"folder {str(self.root)!r} holds other files: "
                    "pass a new or empty folder as --out"
                ) from None
            return False
        except ValueError:
            state = None
        repaired = (
            state is not None
            and state.settings.source != self.settings.source
            and self._only_unreadable_changed(state)
        )
        for key, value in asdict(self.settings).items():
            packed = getattr(state.settings, key) if state else None
            if packed != value and not (key == "source" and repaired):
                difference = {
                    "source": "of different images (names or sizes)",
                    "short_side": "with a different short side",
                }.get(key, f"with a different {key}")
                raise RequestError(
                    f"{str(self.root)!r} holds a packing {difference}: expected {value}, "
                    f"got {packed}: pack into a new folder, or delete this one"
                )
        return repaired

    def _is_complete(
        self, task: Task, digests: Mapping[str, Sequence[str]], allow_gaps: bool
    ) -> bool:
        """Whether the shard of a task is on disk; ``allow_gaps`` accepts skipped images."""
        known = digests.get(task.part, ())
        try:
            index = Shard.at(self.root, task.part, task.number).read(
                known[task.number] if task.number < len(known) else None
            )
        except DamagedShardError:
            return False
        return len(index) == task.stop - task.first and (allow_gaps or bool(index[:, HEIGHT].all()))

    def _finish(self) -> PackedRecord:
        indexes: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
        for task in self.settings.tasks():
            indexes[task.part].append(Shard.at(self.root, task.part, task.number).read())
        skipped, counts, lost = [], {}, []
        for part, shards in indexes.items():
            rows = np.concatenate(shards)
            missing = sorted(rows[rows[:, HEIGHT] == 0, NUMBER].tolist())
            counts[part] = len(rows) - len(missing)
            skipped += [f"{part}/{self.parts[part].names[i]}" for i in missing]
            if not counts[part]:
                raise PackingError(f"no image of {part}/ can be read: there is nothing to pack")
            readable = rows[rows[:, HEIGHT] > 0, LABEL]
            without = np.setdiff1d(self.parts[part].labels, readable)
            lost += [f"{part}/{self.data.class_names[label]}" for label in without]
        if lost:
            raise self._lost_class_error(lost, skipped)
        identity = json.dumps([VERSION, self.settings.source, self.short_side, skipped])
        record = PackedRecord(
            self.settings,
            fingerprint=f"packed-{hashlib.sha256(identity.encode()).hexdigest()[:16]}",
            class_names=list(self.data.class_names),
            counts=counts,
            bytes=int(sum(bytes_of(rows).sum() for shards in indexes.values() for rows in shards)),
            skipped=skipped,
            shards={
                part: [index_digest(rows) for rows in shards] for part, shards in indexes.items()
            },
        )
        write_file(self.root / RECORD_FILE, json.dumps(record.to_json(), indent=1).encode())
        return record


class DiskCost(NamedTuple):
    """Disk space of a packing in bytes.

    Attributes:
        whole: size of the complete store; a key of ``--json``.
        missing: size of the shards that are still to be written.
        free: free space on the disk.
        exact: whether the sizes are exact; otherwise they are estimated from a sample.
    """

    whole: int
    missing: int
    free: int
    exact: bool


def disk_cost(packing: Packing, missing: Sequence[Task]) -> DiskCost:
    """Return the disk space of a packing.

    It reads the header of each image, or of ``SAMPLE_SIZE`` images per split.
    """
    total = remaining = 0.0
    exact = True
    for name, part in packing.parts.items():
        count = len(part.labels)
        sample = np.unique(np.linspace(0, count - 1, min(count, SAMPLE_SIZE)).astype(int))
        mean = np.mean([_packed_bytes(part, i, packing.short_side) for i in sample.tolist()])
        exact = exact and len(sample) == count
        total += mean * count
        remaining += mean * sum(task.stop - task.first for task in missing if task.part == name)
    folder = packing.root.absolute()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return DiskCost(round(total), round(remaining), shutil.disk_usage(existing).free, exact)


def check_disk_space(costs: DiskCost, place: str) -> None:
    """Check that the missing shards fit on the disk.

    An estimate from a sample gets a margin of 5 %.

    Raises:
        RequestError: The disk has too little free space.
    """
    needed = costs.missing * (1 if costs.exact else 1.05)
    if needed > costs.free:
        raise RequestError(
            f"not enough disk space: packing into {place!r} needs {needed / 1e9:.3g} GB and "
            f"{costs.free / 1e9:.3g} GB are free: "
            "free some, pass another --out, or pass a smaller --largest-r"
        )


def _packed_bytes(part: Part, index: int, short: int) -> int:
    """Return the size of one packed image in bytes.

    It is 0 for an image that cannot be read; packing reports these images.
    """
    from PIL import Image

    try:
        with Image.open(BytesIO(part.read(index))) as image:
            width, height = kept_size(image.width, image.height, short)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0
    return 3 * width * height
