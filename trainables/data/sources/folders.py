"""Listing of the images in class folders, through symbolic links, and of what is ignored there.

Called by the sources ``imagefolder`` and ``imagenet``. Only files with an unknown suffix are
opened, and each file's size is read once.
"""

import errno
import heapq
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from search_spaces.errors import RequestError
from trainables.data import ignored as reasons
from trainables.data.ignored import IgnoredCounter, IgnoredFiles, summary
from trainables.data.sources.image_files import HEAD, is_hidden, is_image

FolderId = tuple[int, int]  # device and inode
# Errors of links whose target does not exist: it was removed, or the links form a loop.
BROKEN = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


class Listing(NamedTuple):
    """The images of a split.

    Attributes:
        images: (``class/.../file``, size in bytes) of each image, sorted by the steps of its path.
        ignored: the files that are not read.
    """

    images: list[tuple[str, int]]
    ignored: tuple[IgnoredFiles, ...]


class _Folder(NamedTuple):
    """A folder that is still to be listed: its name below the split and its place on disk."""

    name: str
    place: str


class _Walk:
    """Lists the images of one split.

    Folders on disk are listed first, then the folders behind links, by name. A folder that is
    reached through a link is listed only if it was not listed before, which ends loops and reads no
    image twice.
    """

    def __init__(self, base: Path, split: str) -> None:
        self._split = split
        self._images: list[tuple[str, int]] = []
        self._ignored: dict[str, IgnoredCounter] = {}  # by class; "" for the split itself
        self._links: list[_Folder] = []  # a heap: the order of a disk's entries is arbitrary
        # A link to a folder above the split would lead to the other split.
        above = (base, *base.absolute().parents, *base.resolve().parents)
        self._listed = {_folder_id(str(place)) for place in above}
        self._base = str(base)

    def listing(self) -> Listing:
        """Return all images.

        Raises:
            RequestError: There are none, or a class folder has none.
        """
        self._list_folders([_Folder("", self._base)])
        while self._links:
            self._list_folders([heapq.heappop(self._links)], through_link=True)
        if not self._images:
            raise RequestError(
                f"data folder {self._base!r} has no images in class folders"
                f"{self._explained(self._ignored.values())}: "
                "put images that Pillow reads there, in one folder per class"
            )
        self._check_classes()
        self._images.sort(key=lambda image: image[0].split("/"))
        ignored = IgnoredCounter()
        for counter in self._ignored.values():
            ignored.update(counter)
        return Listing(self._images, ignored.files)

    def _list_folders(self, folders: list[_Folder], *, through_link: bool = False) -> None:
        while folders:
            folder = folders.pop()
            identity = _folder_id(folder.place)
            if through_link and identity in self._listed:
                self._ignore(reasons.REPEATED_FOLDER, folder.name)
                continue
            self._listed.add(identity)
            for entry in _entries(folder.place):
                self._add(entry, folder.name, folders)

    def _add(self, entry: os.DirEntry[str], parent: str, folders: list[_Folder]) -> None:
        name = f"{parent}/{entry.name}" if parent else entry.name
        try:
            is_folder = entry.is_dir()
            if is_hidden(entry.name):
                self._ignore(reasons.HIDDEN_FOLDER if is_folder else reasons.HIDDEN_FILE, name)
            elif is_folder:
                if not parent:
                    self._ignored[name] = IgnoredCounter()
                if entry.is_symlink():
                    heapq.heappush(self._links, _Folder(name, entry.path))
                else:
                    folders.append(_Folder(name, entry.path))
            else:
                self._add_file(entry, name, entry.stat().st_size)
        except OSError as error:
            _check_broken(entry, error)
            if not parent:  # it may be a class
                self._ignored[name] = IgnoredCounter()
            self._ignore(reasons.BROKEN_LINK, name)

    def _add_file(self, entry: os.DirEntry[str], name: str, size: int) -> None:
        if "/" not in name:
            self._ignore(reasons.OUTSIDE_CLASS, name)
        elif not entry.is_file():
            self._ignore(reasons.SPECIAL_FILE, name)
        elif is_image(entry.name, lambda: head(entry.path)):
            self._images.append((name, size))
        else:
            self._ignore(reasons.NOT_AN_IMAGE, name)

    def _ignore(self, reason: str, name: str) -> None:
        folder, slash, _ = name.partition("/")
        known = folder if slash or folder in self._ignored else ""
        self._ignored.setdefault(known, IgnoredCounter()).add(reason, f"{self._split}/{name}")

    def _check_classes(self) -> None:
        """Raise RequestError if a class folder has no images."""
        with_images = {name.partition("/")[0] for name, _ in self._images}
        without = sorted(self._ignored.keys() - with_images - {""})
        if without:
            others = f" ({len(without)} classes have none)" if len(without) > 1 else ""
            files = self._explained([self._ignored[without[0]]]) or ": the folder is empty"
            raise RequestError(
                f"class {without[0]!r} has no images in {self._base!r}{others}{files}: "
                "add images that Pillow reads, or remove the folder"
            )

    @staticmethod
    def _explained(counters: Iterable[IgnoredCounter]) -> str:
        ignored = IgnoredCounter()
        for counter in counters:
            ignored.update(counter)
        return f", only {summary(ignored.files)}" if ignored.files else ""


def list_classes(root: Path, split: str) -> Listing:
    """List the images in the class folders of a split.

    Raises:
        RequestError: The folder of the split is missing or cannot be read, or it or one of its
            class folders has no images.
    """
    base = root / split
    if not base.is_dir():
        raise RequestError(
            f"data folder {str(root)!r} has no {split}/: "
            "it must hold train/ and val/ with one folder per class in each"
        )
    return _Walk(base, split).listing()


def list_flat(folder: Path) -> Listing:
    """List the images directly in a folder, by file name.

    Raises:
        RequestError: The folder cannot be read.
    """
    images: list[tuple[str, int]] = []
    ignored = IgnoredCounter()
    for entry in _entries(str(folder)):
        reason = _flat_reason(entry)
        if reason is None:
            images.append((entry.name, entry.stat().st_size))
        else:
            ignored.add(reason, f"{folder.name}/{entry.name}")
    return Listing(sorted(images), ignored.files)


def _flat_reason(entry: os.DirEntry[str]) -> str | None:
    """Return why an entry of a flat folder is ignored; None for an image."""
    try:
        if is_hidden(entry.name):
            return reasons.HIDDEN_FOLDER if entry.is_dir() else reasons.HIDDEN_FILE
        if entry.is_dir():
            return reasons.SUBFOLDER
        entry.stat()
    except OSError as error:
        _check_broken(entry, error)
        return reasons.BROKEN_LINK
    if not entry.is_file():
        return reasons.SPECIAL_FILE
    return None if is_image(entry.name, lambda: head(entry.path)) else reasons.NOT_AN_IMAGE


def has_folders(folder: Path) -> bool:
    """Whether a folder has a folder that is not hidden."""
    return any(entry.is_dir() and not is_hidden(entry.name) for entry in _entries(str(folder)))


def head(place: str) -> bytes:
    """Return the first bytes of a file; none if it cannot be opened."""
    try:
        with open(place, "rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def _check_broken(entry: os.DirEntry[str], error: OSError) -> None:
    """Raise RequestError unless an entry that cannot be read is a broken link.

    A storage failure must not look like a missing image.
    """
    if not entry.is_symlink() or error.errno not in BROKEN:
        raise RequestError(
            f"{entry.path!r} cannot be read ({error.strerror}): fix it, or remove it"
        ) from error


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise RequestError(
            f"data folder {folder!r} cannot be read ({error.strerror}): fix it, or remove it"
        ) from error


def _folder_id(place: str) -> FolderId:
    status = os.stat(place)
    return status.st_dev, status.st_ino
