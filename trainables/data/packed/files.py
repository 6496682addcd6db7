"""Files that are never seen half written, in a folder where one packing works at a time."""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from search_spaces.errors import RequestError


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the folder, without what an earlier packing left half written.

    Raises:
        RequestError: another packing holds it.
    """
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(
                f"another packing is at work in {str(root)!r}: wait for its end"
            ) from None
        for left in root.glob("*.partial"):
            left.unlink()
        yield


@contextlib.contextmanager
def committed(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when all of it is on the disk."""
    aside = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    with committed(path) as file:
        file.write(data)
