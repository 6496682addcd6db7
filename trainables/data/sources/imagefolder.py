"""ImageFolder trees: ``<path>/train/<class>/<image>`` and ``<path>/val/<class>/<image>``.

Opened by ``open_data`` for the data name ``imagefolder``; the other sources use its helpers.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from search_spaces.errors import RequestError
from trainables.data.ignored import IgnoredCounter
from trainables.data.sources.encoded import EncodedData, Part
from trainables.data.sources.folders import list_classes


class ImageFolderData(EncodedData):
    """An ImageFolder tree.

    The classes are the folders of ``train`` in sorted order; ``val`` must have the same classes.
    Files that Pillow decodes are images, symbolic links are followed, and hidden files and folders
    are ignored, as is everything in ``ignored``.

    Raises:
        RequestError: A folder is missing, a class folder has no images, there are fewer than two
            classes, or the classes of the two splits differ.
    """

    def __init__(self, path: str, train: str = "train", val: str = "val") -> None:
        root = Path(path).expanduser()
        if not root.is_dir():
            raise RequestError(
                f"data folder {str(root)!r} does not exist: "
                f"pass the folder that holds {train}/ and {val}/"
            )
        listings = [list_classes(root, split) for split in (train, val)]
        parts = [listing.images for listing in listings]
        classes, val_classes = (sorted({_class(name) for name, _ in part}) for part in parts)
        if len(classes) < 2:
            raise RequestError(
                f"data folder {str(root / train)!r} has {len(classes)} class: "
                "an ImageFolder tree needs two or more class folders"
            )
        check_classes(
            classes,
            val_classes,
            f"{train}/ and {val}/ of {str(root)!r}",
        )
        number = {name: i for i, name in enumerate(classes)}
        train_part, val_part = (
            _part(root / split, files, number)
            for split, files in zip((train, val), parts, strict=True)
        )
        ignored = IgnoredCounter()
        for listing in listings:
            ignored.update(listing.ignored)
        names = [as_text(name) for name in classes]
        super().__init__(
            names, train_part, val_part, fingerprint("imagefolder", parts), ignored.files
        )


def as_text(name: str) -> str:
    """Return a file name as valid text; bytes that are not UTF-8 (``caf\xe9``) are escaped."""
    return os.fsencode(name).decode(errors="backslashreplace")


def check_classes(train: Iterable[str], val: Iterable[str], where: str) -> None:
    """Check that both splits have the same classes.

    Raises:
        RequestError: They differ; the message names the first class that is in one split only.
    """
    unmatched = sorted(set(train) ^ set(val))
    if unmatched:
        raise RequestError(
            f"class {unmatched[0]!r} is in only one of {where}: both must have the same classes"
        )


def _class(name: str) -> str:
    return name.partition("/")[0]


def _part(base: Path, images: list[tuple[str, int]], number: dict[str, int]) -> Part:
    names = [name for name, _ in images]
    labels = np.array([number[_class(name)] for name in names], dtype=np.int64)
    files = Files(base, names)
    return Part(
        [as_text(name) for name in names],
        labels,
        np.array([size for _, size in images], dtype=np.int64),
        files.read,
        files.place,
    )


def fingerprint(kind: str, parts: Iterable[Sequence[tuple[str, int]]]) -> str:
    """Return the fingerprint of (class/.../file, size in bytes) of each image of each split.

    It depends on the order.
    """
    digest = hashlib.sha256()
    for images in parts:
        for name, size in images:
            digest.update(f"{name} {size}\n".encode("utf-8", "surrogateescape"))
        digest.update(b"--\n")
    return f"{kind}-{digest.hexdigest()[:16]}"


class Files:
    """Reads files by index; picklable for loader processes."""

    def __init__(self, base: Path, names: list[str]) -> None:
        self._base, self._names = base, names

    def read(self, index: int) -> bytes:
        return (self._base / self._names[index]).read_bytes()

    def place(self, index: int) -> str:
        return str(self._base / self._names[index])
