"""Copies a selection of images into an ImageFolder tree with a list of its files; a stopped copy goes on.

While it is under way ``.building`` holds what was asked for, the rows of the files that are whole, and files that are
not yet; ``train`` and ``val`` hold whole files only. ``imagenet100.json`` comes last.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from search_spaces.errors import RequestError
from trainables.data.sources.encoded import EncodedData, Part
from trainables.data.sources.parquet import ParquetPart
from trainables.data.subset.file_list import SPLITS, Row, from_csv, row_of, to_csv, whole_rows
from trainables.data.subset.record import SubsetRecord, SubsetRequest
from trainables.data.subset.selection import DRAWING, Selection
from trainables.storage.documents import parsed

RECORD, FILES, CLASSES, BUILDING = "imagenet100.json", "files.csv", "classes.txt", ".building"
# Of the disk's room: a file takes whole blocks.
BLOCK = 4096


class Progress(Protocol):
    """Told what is about to be copied, and of each image that was."""

    def begin(self, images: int, size: int, kept: int) -> None:
        """So many images of together so many bytes will be written; others are there already."""
        ...

    def copied(self, size: int) -> None: ...


class Built(NamedTuple):
    """The subset's record, and how many images were written and found there."""

    subset: SubsetRecord
    written: int
    kept: int


@dataclass(frozen=True)
class _Image:
    split: str
    name: str
    part: Part
    index: int

    @property
    def path(self) -> str:
        return f"{self.split}/{self.name}"


def build(
    data: EncodedData,
    selection: Selection,
    out: Path,
    about: Mapping[str, str],
    workers: int,
    progress: Progress,
) -> Built:
    """Make ``out`` the selection: ``train/<class>/<file>``, ``val/<class>/<file>``, bytes unchanged, and the three lists.

    ``about`` is what else the record holds: ``source`` (the kind of set) and ``version`` (of this program). Nothing is
    written where nothing is missing.

    Raises:
        RequestError: ``out`` holds something else or another run is at it, the disk has too little room, a listed file
            has other content, a name is no path below a class.
        OSError: an image cannot be read, or a file not written.
    """
    images = {image.path: image for image in _images(data, selection)}
    request = _request(selection, list(images))
    expected = {row.path: row for row in selection.expected.values()}
    finished = _check(out, request, images)
    known = from_csv(out / FILES) if finished else whole_rows(_text(out / BUILDING / FILES))
    if finished:
        expected = {row.path: row for row in known} | expected
    kept = {
        row.path: row for row in known if row.path in images and _size(out / row.path) == row.bytes
    }
    todo = [image for path, image in images.items() if path not in kept]
    if finished and not todo:
        shutil.rmtree(
            out / BUILDING, ignore_errors=True
        )  # of a run that was stopped at its last step
        return Built(finished, 0, len(kept))
    size = sum(int(image.part.sizes[image.index]) for image in todo)
    _check_room(out, size, len(todo))
    progress.begin(len(todo), size, len(kept))
    with _underway(out, request) as building:
        rows = list(kept.values())
        _write(building / FILES, to_csv(rows, head=False))
        with contextlib.closing(_copies(todo, out, building, expected, workers)) as copies:
            for row in copies:
                rows.append(row)
                progress.copied(row.bytes)
        record = _finish(out, selection, request, about, rows)
    return Built(record, len(todo), len(kept))


def _images(data: EncodedData, selection: Selection) -> Iterator[_Image]:
    """The images in the order in which they lie, so that what holds many is read once."""
    for split, part in zip(SPLITS, (data.train, data.val), strict=True):
        chosen = selection.chosen[split]
        if isinstance(part, ParquetPart):
            chosen = part.order[np.isin(part.order, chosen)]
        for index in map(int, chosen):
            name = part.names[index]
            steps = name.split("/")
            if len(steps) < 2 or {"", ".", ".."} & set(steps) or not name.isprintable():
                raise RequestError(
                    f"image {name!r} of the source has no name that can be a file below its class: rename it"
                )
            yield _Image(split, name, part, index)


def _request(selection: Selection, paths: list[str]) -> SubsetRequest:
    return SubsetRequest(
        drawn_from=selection.drawn.drawn_from,
        seed=selection.drawn.seed,
        images_per_class=selection.drawn.images_per_class,
        classes=len(selection.classes),
        train=len(selection.chosen["train"]),
        val=len(selection.chosen["val"]),
        names_sha256=hashlib.sha256("\n".join(sorted(paths)).encode()).hexdigest(),
    )


def _check(out: Path, request: SubsetRequest, images: dict[str, _Image]) -> SubsetRecord | None:
    """The record of a finished set; refuses a folder that holds anything else than a part of what was asked for."""
    if not out.exists() or (
        out.is_dir()
        and not set(os.listdir(out)) - {BUILDING}
        and not (out / BUILDING / RECORD).exists()
    ):
        return None
    try:
        finished, there = _read_record(out)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{str(out)!r} holds other files: give --out an empty folder or a new one"
        ) from error
    for key, wanted in asdict(request).items():
        was = getattr(there, key)
        if was != wanted:
            differ = (
                "images of other names" if key == "names_sha256" else f"{key} {was}, not {wanted}"
            )
            raise RequestError(
                f"{str(out)!r} holds another set ({differ}): give another --out, or what it was made with"
            )
    found = (
        (Path(folder) / file).relative_to(out)
        for split in SPLITS
        for folder, _, files in os.walk(out / split)
        for file in files
    )
    strange = sorted(path.as_posix() for path in found if path.as_posix() not in images)
    if strange:
        raise RequestError(
            f"{len(strange)} of the files in {str(out)!r} are not of the set ({strange[0]!r} first): remove them"
        )
    if finished and hashlib.sha256((out / FILES).read_bytes()).hexdigest() != finished.files_sha256:
        raise RequestError(
            f"{str(out / FILES)!r} was changed since it was written: put it back, or give another --out"
        )
    return finished


def _read_record(out: Path) -> tuple[SubsetRecord | None, SubsetRequest]:
    """The record of a finished set, None where one is under way; and what was asked for.

    Raises:
        OSError: there is neither. DocumentError: it is damaged.
    """
    if (out / RECORD).is_file():
        record = SubsetRecord.from_json(parsed((out / RECORD).read_bytes()))
        return record, record.request
    return None, SubsetRequest.from_json(parsed((out / BUILDING / RECORD).read_bytes()))


def _check_room(out: Path, size: int, count: int) -> None:
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    need, free = size + count * BLOCK, shutil.disk_usage(there).free
    if need > free:
        wanted = f"{count} images need about {need / 1e9:.2f} GB"
        raise RequestError(
            f"{wanted} and the disk of {str(out)!r} has {free / 1e9:.2f} GB free: make room or give another --out"
        )


@contextlib.contextmanager
def _underway(out: Path, request: SubsetRequest) -> Iterator[Path]:
    """The folder of what is not yet done, held by this process alone; gone after a good end."""
    building = out / BUILDING
    try:
        building.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise RequestError(
            f"{str(out)!r} cannot be made ({error.strerror}): give another --out"
        ) from error
    with (building / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RequestError(
                f"another run is writing {str(out)!r}: wait for it, or stop it"
            ) from error
        _write(building / RECORD, json.dumps(request.to_json()))
        yield building
        shutil.rmtree(building, ignore_errors=True)


def _copies(
    todo: list[_Image], out: Path, building: Path, expected: dict[str, Row], workers: int
) -> Generator[Row]:
    """Copy with threads (it is reading, hashing and writing, none of which holds the interpreter), in order."""
    lock = threading.Lock()

    def copy(image: _Image) -> Row:
        data = image.part.read(image.index)
        row = row_of(image.split, image.name, data)
        if expected.get(image.path, row) != row:
            raise RequestError(
                f"{image.part.place(image.index)!r} is not the listed {image.path!r} (its SHA-256 differs): another ImageNet?"
            )
        target, half = out / image.path, building / f"{image.split}-{image.index}"
        half.write_bytes(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        half.replace(target)
        with lock:
            journal.write(to_csv([row], head=False))
            journal.flush()
        return row

    with (
        (building / FILES).open("a", encoding="utf-8") as journal,
        ThreadPoolExecutor(workers) as pool,
    ):
        copies = pool.map(copy, todo)
        try:
            yield from copies
        finally:
            pool.shutdown(cancel_futures=True)


def _finish(
    out: Path,
    selection: Selection,
    request: SubsetRequest,
    about: Mapping[str, str],
    rows: list[Row],
) -> SubsetRecord:
    listing = to_csv(rows)
    record = SubsetRecord(
        request,
        source=about["source"],
        version=about["version"],
        drawing=None if request.drawn_from == "list" else DRAWING,
        bytes=sum(row.bytes for row in rows),
        files_sha256=hashlib.sha256(listing.encode()).hexdigest(),
    )
    _write(out / CLASSES, "".join(f"{name}\n" for name in selection.classes))
    _write(out / FILES, listing)
    _write(out / RECORD, json.dumps(record.to_json(), indent=1) + "\n")
    return record


def _write(file: Path, text: str) -> None:
    half = file.with_name(f".{file.name}.half")
    half.write_text(text, encoding="utf-8")
    half.replace(file)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return None
