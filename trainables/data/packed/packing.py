"""Packing: decode a set once, shrink it, keep it as raw pixels; ``dataset.py`` says in which files.

Every shard is written aside and renamed, its index last, so a packing that was stopped goes on where it was.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np

from search_spaces.errors import RequestError
from trainables.data.packed.files import alone, write_file
from trainables.data.packed.record import PackedRecord, PackingSettings, PackingState
from trainables.data.packed.shards import (
    HEIGHT,
    NUMBER,
    PARTS,
    SETTINGS,
    VERSION,
    WHOLE,
    DamagedShardError,
    Shard,
    bytes_of,
    index_digest,
    kept_size,
)
from trainables.data.packed.workers import (
    Done,
    PackingError,
    PackingJob,
    Task,
    UnreadableImagesError,
    written,
)
from trainables.data.sources.encoded import EncodedData, Part
from trainables.data.sources.imagefolder import fingerprint
from trainables.storage.documents import parsed

# Small shards divide the work evenly and lose little when it stops; few files, since a reader keeps each one open.
LEAST_SHARD, MOST_SHARDS = 512, 400
# Headers that are read of each part to know what it will take.
SAMPLE = 1000
UNREADABLE = "unreadable.txt"
OnError = Literal["fail", "skip"]


@dataclass
class Packing:
    """One packing of a set into a folder; without ``shard_images`` the set's size decides how many lie in one file."""

    data: EncodedData
    root: Path
    short_side: int
    shard_images: int | None = None
    parts: dict[str, Part] = field(init=False)
    settings: PackingSettings = field(init=False)

    def __post_init__(self) -> None:
        self.parts = {"train": self.data.train, "val": self.data.val}
        sizes = (self.data.train_size, self.data.val_size)
        shard_images = self.shard_images or max(LEAST_SHARD, -(-max(sizes) // MOST_SHARDS))
        self.settings = PackingSettings(
            self.data.fingerprint, self.short_side, *sizes, shard_images
        )

    def todo(self, on_error: OnError) -> list[Task]:
        """The shards that are missing, damaged, or (unless they are to be skipped) lack an image.

        Raises:
            RequestError: the folder holds something else, or a packing of another set or with other settings.
        """
        mended = self._check_settings()
        whole = self.packed()
        if on_error == "fail" and whole and whole.skipped:
            skipped = whole.skipped
            said = (
                f"was packed without {len(skipped)} images that cannot be read ({skipped[0]}, ...)"
            )
            raise RequestError(
                f"{str(self.root)!r} {said}: give --on-error skip to keep it so, or pack into a new folder"
            )
        known = whole.shards if whole else {}
        return [
            task
            for task in self.settings.tasks()
            if not self._kept(task, known, on_error == "skip" and not mended)
        ]

    def pack(
        self, workers: int, on_error: OnError, report: Callable[[Done], None] = lambda done: None
    ) -> PackedRecord:
        """Write what is missing, then ``packed.json``, and return its record.

        Raises:
            RequestError: as ``todo``; or another packing is at work in the folder.
            PackingError: images cannot be read, storage failed, or a worker process was lost.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(
                f"folder {str(self.root)!r} cannot be made ({error.strerror}): give another --out"
            ) from error
        with alone(self.root):
            todo = self.todo(on_error)
            if todo:
                (self.root / WHOLE).unlink(missing_ok=True)
            if self._check_settings() or not (self.root / SETTINGS).exists():
                self._write_settings({})
            unreadable: dict[str, str] = {}
            for done in written(PackingJob(self.parts, self.root, self.short_side), todo, workers):
                unreadable |= done.unreadable
                report(done)
            if unreadable and on_error == "fail":
                raise self._refusal(unreadable)
            record = self._finish()
            self._write_settings({})
            (self.root / UNREADABLE).unlink(missing_ok=True)
            return record

    def packed(self) -> PackedRecord | None:
        """The record in ``packed.json``; None where it is missing or damaged, since it can be made again."""
        try:
            return PackedRecord.from_json(parsed((self.root / WHOLE).read_text()))
        except (OSError, ValueError):
            return None

    def _refusal(self, unreadable: dict[str, str]) -> UnreadableImagesError:
        """Note what cannot be read, for people and for the packing that goes on, and say it."""
        file, lines = (
            self.root / UNREADABLE,
            [" ".join(f"{name} ({why})".split()) for name, why in sorted(unreadable.items())],
        )
        write_file(file, "".join(f"{line}\n" for line in lines).encode())
        sizes = (
            (f"{split}/{name}", size)
            for split, part in self.parts.items()
            for name, size in zip(part.names, part.sizes, strict=True)
        )
        self._write_settings({name: int(size) for name, size in sizes if name in unreadable})
        few = ", ".join(lines[:3]) + (
            f", ... (all in {file})" if len(lines) > 3 else f" (also in {file})"
        )
        what = f"{len(lines)} images cannot be read" if len(lines) > 1 else "1 image cannot be read"
        said = f"{what}: {few}: give --on-error skip to pack without, or mend them and run the same command again (the rest is packed already)"
        return UnreadableImagesError(said, lines, file)

    def _write_settings(self, unreadable: dict[str, int]) -> None:
        """Beside the settings the bytes of each image that could not be read, where there are such."""
        state = PackingState(self.settings, unreadable)
        write_file(self.root / SETTINGS, json.dumps(state.to_json(), indent=1).encode())

    def _mended(self, state: PackingState) -> bool:
        """Whether nothing changed in the source but images that could not be read: with their old sizes it is the one there."""

        def source(old: Mapping[str, int]) -> str:
            content: list[list[tuple[PurePosixPath, int]]] = []
            for split, part in self.parts.items():
                sizes: list[int] = part.sizes.tolist()
                named = zip(part.names, sizes, strict=True)
                content.append(
                    [
                        (PurePosixPath(name), old.get(f"{split}/{name}", size))
                        for name, size in named
                    ]
                )
            return fingerprint(self.settings.source.rpartition("-")[0], content)

        # Sets whose fingerprint is made otherwise (Parquet) tell nothing.
        return (
            bool(state.unreadable)
            and source({}) == self.settings.source
            and source(state.unreadable) == state.settings.source
        )

    def _check_settings(self) -> bool:
        """Whether the packing there is one of these images before some of them were mended."""
        try:
            state = PackingState.from_json(json.loads((self.root / SETTINGS).read_text()))
        except NotADirectoryError:
            raise RequestError(f"{str(self.root)!r} is a file: give --out a folder") from None
        except FileNotFoundError:
            if self.root.is_dir() and any(
                not entry.name.startswith(".") for entry in self.root.iterdir()
            ):
                raise RequestError(
                    f"folder {str(self.root)!r} holds other files: give --out a new or an empty folder"
                ) from None
            return False
        except ValueError:
            state = None
        mended = (
            state is not None
            and state.settings.source != self.settings.source
            and self._mended(state)
        )
        for key, value in asdict(self.settings).items():
            was = getattr(state.settings, key) if state else None
            if was != value and not (key == "source" and mended):
                what = {
                    "source": "the images are others (names or sizes)",
                    "short_side": "the short side is another",
                }.get(key, f"{key} differs")
                said = f"{what}: {was} there, {value} now"
                raise RequestError(
                    f"{str(self.root)!r} holds a packing in which {said}: pack into a new folder, or delete this one"
                )
        return mended

    def _kept(self, task: Task, known: Mapping[str, Sequence[str]], gaps: bool) -> bool:
        digests = known.get(task.part, ())
        try:
            index = Shard.at(self.root, task.part, task.number).read(
                digests[task.number] if task.number < len(digests) else None
            )
        except DamagedShardError:
            return False
        return len(index) == task.stop - task.first and (gaps or bool(index[:, HEIGHT].all()))

    def _finish(self) -> PackedRecord:
        indexes = {
            part: [
                Shard.at(self.root, part, t.number).read()
                for t in self.settings.tasks()
                if t.part == part
            ]
            for part in PARTS
        }
        skipped, counts = [], {}
        for part, found in indexes.items():
            rows = np.concatenate(found)
            missing = sorted(rows[rows[:, HEIGHT] == 0, NUMBER].tolist())
            counts[part] = len(rows) - len(missing)
            skipped += [f"{part}/{self.parts[part].names[i]}" for i in missing]
            if not counts[part]:
                raise PackingError(f"no image of {part}/ can be read: nothing is left to pack")
        named = json.dumps([VERSION, self.settings.source, self.short_side, skipped])
        record = PackedRecord(
            self.settings,
            fingerprint=f"packed-{hashlib.sha256(named.encode()).hexdigest()[:16]}",
            class_names=list(self.data.class_names),
            counts=counts,
            bytes=int(sum(bytes_of(rows).sum() for found in indexes.values() for rows in found)),
            skipped=skipped,
            shards={
                part: [index_digest(rows) for rows in found] for part, found in indexes.items()
            },
        )
        write_file(self.root / WHOLE, json.dumps(record.to_json(), indent=1).encode())
        return record


class Cost(NamedTuple):
    """Disk space in bytes: of the whole store, of what is still to be written, and what is free; ``exact`` or from a sample."""

    whole: int
    missing: int
    free: int
    exact: bool


def cost(packing: Packing, missing: Sequence[Task]) -> Cost:
    """What a packing takes, from the header of every image, or of ``SAMPLE`` of each part."""
    whole = left = 0.0
    exact = True
    for name, part in packing.parts.items():
        count = len(part.labels)
        chosen = np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).astype(int))
        each = np.mean([_bytes(part, i, packing.short_side) for i in chosen.tolist()])
        exact = exact and len(chosen) == count
        whole += each * count
        left += each * sum(task.stop - task.first for task in missing if task.part == name)
    folder = packing.root.absolute()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return Cost(round(whole), round(left), shutil.disk_usage(existing).free, exact)


def check_room(costs: Cost, place: str) -> None:
    """Make sure that the missing part fits, with a twentieth to spare for a sample's error.

    Raises:
        RequestError: it does not.
    """
    needed = costs.missing * (1 if costs.exact else 1.05)
    if needed > costs.free:
        gigabytes = f"needs {needed / 1e9:.3g} GB and {costs.free / 1e9:.3g} GB are free"
        raise RequestError(
            f"no room: packing into {place!r} {gigabytes}: free some, give another --out, or a smaller --largest-r"
        )


def _bytes(part: Part, index: int, short: int) -> int:
    """Bytes of one image when packed; none of one that cannot be read, which the packing itself will name."""
    from PIL import Image

    try:
        with Image.open(BytesIO(part.read(index))) as image:
            width, height = kept_size(image.width, image.height, short)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0
    return 3 * width * height
