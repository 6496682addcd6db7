"""Files inside tar files, read where they lie: nothing is extracted."""

import os
import tarfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from search_spaces.errors import RequestError

BLOCK = 512
# Headers are read one small read at a time: on network storage it is the waiting that takes the time.
AT_ONCE = 8


class Member(NamedTuple):
    """A file of a tar file: its name there, where its bytes begin, and how many they are."""

    name: str
    offset: int
    size: int


def members(tar: Path) -> list[Member]:
    """The files of a tar file, in its own order.

    Raises:
        RequestError: it is damaged, cut short or no tar file.
    """
    with tar.open("rb") as file:
        return list(_walk(file.fileno(), tar, Member(tar.name, 0, os.fstat(file.fileno()).st_size)))


def nested(tar: Path) -> list[tuple[str, list[Member]]]:
    """The files of each tar file inside a tar file, by the inner one's name; offsets are those of the outer file.

    Raises:
        RequestError: the file or one inside is damaged, cut short or no tar file.
    """
    inner = members(tar)
    with tar.open("rb") as file, ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda member: list(_walk(file.fileno(), tar, member)), inner)
        return [(member.name, files) for member, files in zip(inner, found, strict=True)]


def _walk(handle: int, tar: Path, within: Member) -> Iterator[Member]:
    """The files of the tar file that lies in a range of an open one."""
    at, end = within.offset, within.offset + within.size
    while at + BLOCK <= end:
        header = os.pread(handle, BLOCK, at)
        if not header.strip(b"\0") and len(header) == BLOCK:
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            break
        at += BLOCK
        # Extended headers (types x, g, L) are skipped: short names and sizes, as ImageNet's, never need them.
        if info.isreg() and at + info.size <= end:
            yield Member(info.name, at, info.size)
        at += -(-info.size // BLOCK) * BLOCK
    inside = "" if within.name == tar.name else f" (in {within.name})"
    raise RequestError(f"{str(tar)!r} is cut short, damaged or no tar file{inside}: fetch it again")


class TarRanges:
    """Ranges of one file's bytes by number; picklable, each process opens the file for itself."""

    def __init__(
        self, tar: Path, names: Sequence[str], offsets: np.ndarray, sizes: np.ndarray
    ) -> None:
        self._tar, self._names, self._offsets, self._sizes = tar, names, offsets, sizes
        self._lock = threading.Lock()
        self._handle: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None, "_handle": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def read(self, index: int) -> bytes:
        at, left = int(self._offsets[index]), int(self._sizes[index])
        chunks = []
        while left:
            chunk = os.pread(self._opened(), left, at)
            if not chunk:
                raise OSError(
                    f"{self.place(index)} ends early: the file is shorter than when it was opened"
                )
            chunks.append(chunk)
            at, left = at + len(chunk), left - len(chunk)
        return b"".join(chunks)

    def place(self, index: int) -> str:
        return f"{self._tar}/{self._names[index]}"

    def _opened(self) -> int:
        """The file's handle. A forked process may share it: every read says where it reads."""
        if self._handle is None:
            with self._lock:
                if self._handle is None:
                    self._handle = os.open(self._tar, os.O_RDONLY | os.O_CLOEXEC)
        return self._handle

    def __del__(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
