"""Copies a selection of images into an ImageFolder tree with a list of its files.

Called by ``tinynet data imagenet100``. An interrupted copy resumes: until it is complete,
``.building`` holds the request, the rows of the copied files, and partly written files. ``train``
and ``val`` hold complete files only. ``imagenet100.json`` is written last.
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
from trainables.data.sources.image_files import is_hidden_path
from trainables.data.sources.parquet import ParquetPart
from trainables.data.subset.file_list import SPLITS, Row, complete_rows, from_csv, row_of, to_csv
from trainables.data.subset.record import SubsetRecord, SubsetRequest
from trainables.data.subset.selection import DRAWING, Selection
from trainables.storage.documents import parsed

RECORD, FILES, CLASSES, BUILDING = "imagenet100.json", "files.csv", "classes.txt", ".building"
# Block size of the disk, added to the size of each file.
BLOCK = 4096


class Progress(Protocol):
    """Receives the progress of a copy."""

    def begin(self, images: int, size: int, kept: int) -> None:
        """Called before the copy starts.

        Args:
            images: number of images to write.
            size: their size in bytes.
            kept: number of images that exist already.
        """
        ...

    def copied(self, size: int) -> None:
        """Called after each copied image, with its size in bytes."""
        ...


class BuildResult(NamedTuple):
    """The result of ``build``.

    Attributes:
        subset: the record of the subset.
        written: number of images that were written.
        kept: number of images that existed already.
    """

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
) -> BuildResult:
    """Copy the selection to ``out``.

    It writes ``train/<class>/<file>`` and ``val/<class>/<file>`` with unchanged bytes, and the
    files ``classes.txt``, ``files.csv`` and ``imagenet100.json``. It writes nothing if the subset
    is complete.

    Args:
        about: further fields of the record: ``source`` (the kind of set) and ``version`` (of this
            program).

    Raises:
        RequestError: ``out`` holds other files or another run is writing it, the disk has too
            little free space, a listed file has other content, or a name is not a path below a
            class.
        OSError: An image cannot be read, or a file cannot be written.
    """
    images = {image.path: image for image in _images(data, selection)}
    request = _request(selection, list(images))
    expected = {row.path: row for row in selection.expected.values()}
    finished = _check_folder(out, request, images)
    known = from_csv(out / FILES) if finished else complete_rows(_text(out / BUILDING / FILES))
    if finished:
        expected = {row.path: row for row in known} | expected
    kept = {
        row.path: row for row in known if row.path in images and _size(out / row.path) == row.bytes
    }
    todo = [image for path, image in images.items() if path not in kept]
    if finished and not todo:
        # A run that was interrupted at its last step leaves the folder behind.
        shutil.rmtree(out / BUILDING, ignore_errors=True)
        return BuildResult(finished, 0, len(kept))
    size = sum(int(image.part.sizes[image.index]) for image in todo)
    _check_disk_space(out, size, len(todo))
    progress.begin(len(todo), size, len(kept))
    with _building_folder(out, request) as building:
        rows = list(kept.values())
        _write(building / FILES, to_csv(rows, head=False))
        with contextlib.closing(_copy_images(todo, out, building, expected, workers)) as copies:
            for row in copies:
                rows.append(row)
                progress.copied(row.bytes)
        record = _finish(out, selection, request, about, rows)
    return BuildResult(record, len(todo), len(kept))


def _images(data: EncodedData, selection: Selection) -> Iterator[_Image]:
    """Yield the images in storage order, so that each row group of a shard is read once."""
    for split, part in zip(SPLITS, (data.train, data.val), strict=True):
        chosen = selection.chosen[split]
        if isinstance(part, ParquetPart):
            chosen = part.order[np.isin(part.order, chosen)]
        for index in map(int, chosen):
            name = part.names[index]
            steps = name.split("/")
            if len(steps) < 2 or {"", ".", ".."} & set(steps) or not name.isprintable():
                raise RequestError(
                    f"image {name!r} of the source: "
                    "expected the path of a file below its class, rename it"
                )
            if is_hidden_path(name):
                raise RequestError(
                    f"image {name!r} of the source would be a hidden file of the subset, which is "
                    "ignored: rename its class"
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


def _check_folder(
    out: Path, request: SubsetRequest, images: dict[str, _Image]
) -> SubsetRecord | None:
    """Return the record of a complete subset, or None if ``out`` is new or incomplete.

    Raises:
        RequestError: ``out`` holds anything other than a part of the requested subset.
    """
    if not out.exists() or (
        out.is_dir()
        and not set(os.listdir(out)) - {BUILDING}
        and not (out / BUILDING / RECORD).exists()
    ):
        return None
    try:
        finished, written = _read_record(out)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{str(out)!r} holds other files: pass an empty or new folder as --out"
        ) from error
    for key, expected in asdict(request).items():
        actual = getattr(written, key)
        if actual != expected:
            difference = (
                "different image names"
                if key == "names_sha256"
                else f"expected {key} {expected}, got {actual}"
            )
            raise RequestError(
                f"{str(out)!r} holds a different set ({difference}): "
                "pass another --out, or the options that it was created with"
            )
    unexpected: list[str] = []
    for split in SPLITS:
        for folder, _, files in os.walk(out / split):
            paths = ((Path(folder) / file).relative_to(out).as_posix() for file in files)
            unexpected += [path for path in paths if path not in images]
    if unexpected:
        raise RequestError(
            f"{len(unexpected)} of the files in {str(out)!r} are not part of the set "
            f"(for example {min(unexpected)!r}): remove them"
        )
    if finished and hashlib.sha256((out / FILES).read_bytes()).hexdigest() != finished.files_sha256:
        raise RequestError(
            f"{str(out / FILES)!r} was changed after it was written: "
            "restore it, or pass another --out"
        )
    return finished


def _read_record(out: Path) -> tuple[SubsetRecord | None, SubsetRequest]:
    """Return the record of a complete subset, or None if it is incomplete, and the request.

    Raises:
        OSError: Neither document exists.
        DocumentError: The document is damaged.
    """
    if (out / RECORD).is_file():
        record = SubsetRecord.from_json(parsed((out / RECORD).read_bytes()))
        return record, record.request
    return None, SubsetRequest.from_json(parsed((out / BUILDING / RECORD).read_bytes()))


def _check_disk_space(out: Path, size: int, count: int) -> None:
    folder = out.absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    needed, free = size + count * BLOCK, shutil.disk_usage(existing).free
    if needed > free:
        raise RequestError(
            f"not enough disk space: {count} images need about {needed / 1e9:.2f} GB and the disk "
            f"of {str(out)!r} has {free / 1e9:.2f} GB free: free some, or pass another --out"
        )


@contextlib.contextmanager
def _building_folder(out: Path, request: SubsetRequest) -> Iterator[Path]:
    """Create and lock ``.building``, and remove it after success.

    Raises:
        RequestError: The folder cannot be created, or another run holds the lock.
    """
    building = out / BUILDING
    try:
        building.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise RequestError(
            f"{str(out)!r} cannot be created ({error.strerror}): pass another --out"
        ) from error
    with (building / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RequestError(
                f"another run is writing {str(out)!r}: wait until it ends, or stop it"
            ) from error
        _write(building / RECORD, json.dumps(request.to_json()))
        yield building
        shutil.rmtree(building, ignore_errors=True)


def _copy_images(
    todo: list[_Image], out: Path, building: Path, expected: dict[str, Row], workers: int
) -> Generator[Row]:
    """Copy the images with threads and yield their rows in order.

    Reading, hashing and writing all release the interpreter lock.
    """
    lock = threading.Lock()

    def copy(image: _Image) -> Row:
        data = image.part.read(image.index)
        row = row_of(image.split, image.name, data)
        if expected.get(image.path, row) != row:
            raise RequestError(
                f"{image.part.place(image.index)!r} is not the listed {image.path!r} "
                "(its SHA-256 differs): pass the set that the list was made from"
            )
        target, partial = out / image.path, building / f"{image.split}-{image.index}"
        partial.write_bytes(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(target)
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
    partial = file.with_name(f".{file.name}.half")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return None
