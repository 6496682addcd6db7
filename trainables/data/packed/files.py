"""Atomic file writes and the lock of a packed set's folder.

Called by packing and by the worker processes that write shards.
"""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from search_spaces.errors import RequestError


@contextlib.contextmanager
def folder_lock(root: Path) -> Iterator[None]:
    """Lock the folder and delete the partial files of an earlier packing.

    Raises:
        RequestError: Another packing holds the lock.
    """
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(
                f"another packing is running in {str(root)!r}: wait until it ends"
            ) from None
        for partial in root.glob("*.partial"):
            partial.unlink()
        yield


@contextlib.contextmanager
def committed(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file for writing.

    On success it is synced to disk and renamed to ``path``; otherwise it is deleted.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    with committed(path) as file:
        file.write(data)
