"""Files inside tar files, read in place without extraction.

Called by ``ImageNetData``.
"""

import os
import tarfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from search_spaces.errors import RequestError
from trainables.data import ignored as reasons
from trainables.data.ignored import IgnoredCounter
from trainables.data.sources.image_files import HEAD, is_hidden_path, is_image

BLOCK = 512
# Headers take many small reads, and on network storage their latency dominates.
READ_THREADS = 8


class Member(NamedTuple):
    """A file or a link in a tar file.

    Attributes:
        name: its path in the tar file.
        offset: the offset of its first byte in the outermost tar file.
        size: its size in bytes.
        is_link: whether it is a link, which has no bytes of its own.
    """

    name: str
    offset: int
    size: int
    is_link: bool = False


def members(tar: Path) -> list[Member]:
    """Return the files and links of a tar file in their order in it.

    Raises:
        RequestError: The file is damaged, truncated or not a tar file.
    """
    with tar.open("rb") as file:
        return list(_walk(file.fileno(), tar, Member(tar.name, 0, os.fstat(file.fileno()).st_size)))


def nested(tar: Path, ignored: IgnoredCounter) -> list[tuple[str, list[Member]]]:
    """Return the files of each tar file inside a tar file, with the name of the inner tar file.

    Args:
        ignored: counts the hidden files and the links beside the inner tar files.

    Raises:
        RequestError: The file or one inside is damaged, truncated or not a tar file.
    """
    inner = [member for member in members(tar) if not _ignore(member, ignored, tar.name)]
    with tar.open("rb") as file, ThreadPoolExecutor(READ_THREADS) as pool:
        contents = pool.map(lambda member: list(_walk(file.fileno(), tar, member)), inner)
        return [(member.name, files) for member, files in zip(inner, contents, strict=True)]


def images(
    tar: Path, files: Iterable[Member], ignored: IgnoredCounter, place: str = ""
) -> list[Member]:
    """Return the files that are images.

    Args:
        files: members of the tar file, or of one inside it.
        ignored: counts the other files.
        place: the path of the files in the tar file, with a slash at its end.
    """
    place = f"{tar.name}/{place}"
    with tar.open("rb") as file:

        def head(member: Member) -> bytes:
            return os.pread(file.fileno(), min(HEAD, member.size), member.offset)

        chosen = []
        for member in files:
            if _ignore(member, ignored, place.rstrip("/")):
                continue
            if is_image(member.name, partial(head, member)):
                chosen.append(member)
            else:
                ignored.add(reasons.NOT_AN_IMAGE, f"{place}{member.name}")
        return chosen


def _ignore(member: Member, ignored: IgnoredCounter, place: str) -> bool:
    """Count a hidden file or a link, and return whether the member is one."""
    if is_hidden_path(member.name):
        ignored.add(reasons.HIDDEN_FILE, f"{place}/{member.name}")
        return True
    if member.is_link:
        ignored.add(reasons.TAR_LINK, f"{place}/{member.name}")
    return member.is_link


def _walk(descriptor: int, tar: Path, within: Member) -> Iterator[Member]:
    """Yield the files of the tar file that is in the range ``within`` of an open file."""
    at, end = within.offset, within.offset + within.size
    while at + BLOCK <= end:
        header = os.pread(descriptor, BLOCK, at)
        if not header.strip(b"\0") and len(header) == BLOCK:
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            break
        at += BLOCK
        # Extended headers (types x, g, L) are skipped: ImageNet's names and sizes are too short to
        # need them.
        if info.issym() or info.islnk():
            yield Member(info.name, at, 0, is_link=True)
            continue
        if info.isreg() and at + info.size <= end:
            yield Member(info.name, at, info.size)
        at += -(-info.size // BLOCK) * BLOCK
    inside = "" if within.name == tar.name else f" (in {within.name})"
    raise RequestError(
        f"{str(tar)!r} is truncated, damaged or not a tar file{inside}: download it again"
    )


class TarRanges:
    """Reads byte ranges of one file by index; picklable, and each process opens the file itself."""

    def __init__(
        self, tar: Path, names: Sequence[str], offsets: np.ndarray, sizes: np.ndarray
    ) -> None:
        self._tar, self._names, self._offsets, self._sizes = tar, names, offsets, sizes
        self._lock = threading.Lock()
        self._descriptor: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None, "_descriptor": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def read(self, index: int) -> bytes:
        offset, remaining = int(self._offsets[index]), int(self._sizes[index])
        chunks = []
        while remaining:
            chunk = os.pread(self._file_descriptor(), remaining, offset)
            if not chunk:
                raise OSError(
                    f"{self.place(index)} is truncated: the file is shorter than when it was opened"
                )
            chunks.append(chunk)
            offset, remaining = offset + len(chunk), remaining - len(chunk)
        return b"".join(chunks)

    def place(self, index: int) -> str:
        return f"{self._tar}/{self._names[index]}"

    def _file_descriptor(self) -> int:
        """Return the file descriptor, opened on first use.

        A forked process may share it, because ``pread`` does not use the file position.
        """
        if self._descriptor is None:
            with self._lock:
                if self._descriptor is None:
                    self._descriptor = os.open(self._tar, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptor

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
