"""Packing: decode a set once, shrink it, keep it as raw pixels; ``packed.py`` says in which files.

Every shard is written aside and renamed, its index last, so a packing that was stopped goes on where it was. JPEGs are
decoded whole: draft mode (a smaller inverse transform) is faster but gives other pixels.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from search_spaces.errors import RequestError
from trainables.data.encoded import EncodedData, Part, UnreadableImageError
from trainables.data.packed import (
    HEIGHT,
    LABEL,
    NUMBER,
    PARTS,
    SETTINGS,
    VERSION,
    WHOLE,
    DamagedShardError,
    Shard,
    bytes_of,
    digest_of,
    kept_size,
)
from trainables.data.packing_files import alone, committed, write_file

SHARD_IMAGES = 2048
OnError = Literal["fail", "skip"]


class PackingError(RuntimeError):
    """The packing ended without a whole store; the message is one line."""


class Stop(Protocol):
    """An event of threads or of processes."""

    def is_set(self) -> bool: ...


class Task(NamedTuple):
    """A shard to write: the images ``first`` to ``stop`` of a part, in the order in which they lie."""

    part: str
    number: int
    first: int
    stop: int


class Done(NamedTuple):
    """A written shard: its images, the unreadable ones among them, and why."""

    task: Task
    images: int
    unreadable: list[str]


@dataclass(frozen=True)
class Settings:
    """What decides the pixels of a store, and how they are divided."""

    source: str
    short_side: int
    train: int
    val: int
    shard_images: int = SHARD_IMAGES
    version: int = VERSION

    def tasks(self) -> Iterator[Task]:
        for part in PARTS:
            count = getattr(self, part)
            for number, first in enumerate(range(0, count, self.shard_images)):
                yield Task(part, number, first, min(count, first + self.shard_images))


@dataclass
class Packing:
    """One packing of a set into a folder."""

    data: EncodedData
    root: Path
    short_side: int
    shard_images: int = SHARD_IMAGES
    parts: dict[str, Part] = field(init=False)
    settings: Settings = field(init=False)

    def __post_init__(self) -> None:
        self.parts = {"train": self.data.train, "val": self.data.val}
        sizes = (self.data.train_size, self.data.val_size)
        self.settings = Settings(self.data.fingerprint, self.short_side, *sizes, self.shard_images)

    def todo(self, on_error: OnError) -> list[Task]:
        """The shards that are missing, damaged, or (unless they are to be skipped) lack an image.

        Raises:
            RequestError: the folder holds something else, or a packing of another set or with other settings.
        """
        self._check_settings()
        whole = _record(self.root)
        if on_error == "fail" and (skipped := whole.get("skipped")):
            said = f"was packed without {len(skipped)} images that cannot be read ({skipped[0]}, ...)"
            raise RequestError(f"{str(self.root)!r} {said}: give --on-error skip to keep it so, or pack into a new folder")
        known = whole.get("shards", {})
        return [task for task in self.settings.tasks() if not self._kept(task, known, on_error)]

    def run(self, workers: int, on_error: OnError, report: Callable[[Done], None] = lambda done: None) -> dict[str, Any]:
        """Write what is missing, then ``packed.json``, and return what it says.

        Raises:
            RequestError: as ``todo``; or another packing is at work in the folder.
            PackingError: images cannot be read, storage failed, or a worker process was lost.
        """
        from trainables.data.packing_workers import written

        self.root.mkdir(parents=True, exist_ok=True)
        with alone(self.root):
            todo = self.todo(on_error)
            if todo:
                (self.root / WHOLE).unlink(missing_ok=True)
            write_file(self.root / SETTINGS, json.dumps(asdict(self.settings), indent=1).encode())
            unreadable: list[str] = []
            for done in written(self, todo, workers):
                unreadable += done.unreadable
                report(done)
            if unreadable and on_error == "fail":
                raise PackingError(_refusal(sorted(unreadable)))
            return self._finish()

    def write(self, task: Task, stop: Stop) -> Done:
        """Decode, shrink and commit one shard.

        Raises:
            OSError: storage failed. KeyboardInterrupt: ``stop`` was set.
        """
        from PIL import Image

        part, shard = self.parts[task.part], Shard.at(self.root, task.part, task.number)
        numbers = getattr(part, "order", np.arange(len(part.labels)))[task.first : task.stop]
        rows, unreadable = np.zeros((len(numbers), 4), np.int32), []
        rows[:, NUMBER], rows[:, LABEL] = numbers, part.labels[numbers]
        with committed(shard.pixels) as file:
            for row, i in enumerate(numbers.tolist()):
                if stop.is_set():
                    raise KeyboardInterrupt
                try:
                    picture = shrunk(part.image(i), self.short_side)
                except (UnreadableImageError, Image.DecompressionBombError) as error:
                    unreadable.append(f"{task.part}/{part.names[i]} ({str(error).rpartition(': ')[2]})")
                    continue
                pixels = np.asarray(picture)
                rows[row, HEIGHT:] = pixels.shape[:2]
                file.write(pixels.tobytes())
        with committed(shard.index) as file:
            np.save(file, rows)
        return Done(task, len(rows), unreadable)

    def _check_settings(self) -> None:
        try:
            found = json.loads((self.root / SETTINGS).read_text())
        except FileNotFoundError:
            if self.root.is_dir() and any(not entry.name.startswith(".") for entry in self.root.iterdir()):
                raise RequestError(f"folder {str(self.root)!r} holds other files: give --out a new or an empty folder") from None
            return
        except ValueError:
            found = {}
        wanted = asdict(self.settings)
        for key, value in wanted.items():
            if found.get(key) != value:
                what = {"source": "the images are others (names or sizes)", "short_side": "the short side is another"}.get(
                    key, f"{key} differs"
                )
                said = f"{what}: {found.get(key)} there, {value} now"
                raise RequestError(f"{str(self.root)!r} holds a packing in which {said}: pack into a new folder, or delete this one")

    def _kept(self, task: Task, known: dict[str, Sequence[str]], on_error: OnError) -> bool:
        digests = known.get(task.part, ())
        try:
            index = Shard.at(self.root, task.part, task.number).read(digests[task.number] if task.number < len(digests) else None)
        except DamagedShardError:
            return False
        return len(index) == task.stop - task.first and (on_error == "skip" or bool(index[:, HEIGHT].all()))

    def _finish(self) -> dict[str, Any]:
        indexes = {part: [Shard.at(self.root, part, t.number).read() for t in self.settings.tasks() if t.part == part] for part in PARTS}
        skipped, counts = [], {}
        for part, found in indexes.items():
            rows = np.concatenate(found)
            missing = sorted(rows[rows[:, HEIGHT] == 0, NUMBER].tolist())
            counts[part] = len(rows) - len(missing)
            skipped += [f"{part}/{self.parts[part].names[i]}" for i in missing]
            if not counts[part]:
                raise PackingError(f"no image of {part}/ can be read: nothing is left to pack")
        named = json.dumps([VERSION, self.settings.source, self.short_side, skipped])
        record = {
            **asdict(self.settings),
            "fingerprint": f"packed-{hashlib.sha256(named.encode()).hexdigest()[:16]}",
            "class_names": list(self.data.class_names),
            "counts": counts,
            "bytes": int(sum(bytes_of(rows).sum() for found in indexes.values() for rows in found)),
            "skipped": skipped,
            "shards": {part: [digest_of(rows) for rows in found] for part, found in indexes.items()},
        }
        write_file(self.root / WHOLE, json.dumps(record, indent=1).encode())
        return record


def shrunk(image: Any, short: int) -> Any:
    """The PIL image with a short side of ``short`` pixels, antialiased; a smaller one as it is."""
    from PIL import Image

    size = kept_size(image.width, image.height, short)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def _refusal(unreadable: Sequence[str]) -> str:
    count, few = len(unreadable), ", ".join(unreadable[:3]) + (", ..." if len(unreadable) > 3 else "")
    what = f"{count} images cannot be read" if count > 1 else "1 image cannot be read"
    return f"{what}: {few}: leave them out with --on-error skip (the rest is packed already), or mend them and pack into a new folder"


def _record(root: Path) -> dict[str, Any]:
    """What ``packed.json`` says; nothing where it is missing or damaged, since it can be made again."""
    try:
        return json.loads((root / WHOLE).read_text())
    except (OSError, ValueError):
        return {}
