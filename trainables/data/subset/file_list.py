"""Lists of a set's files with their digests: ``split,class,file,bytes,sha256``, a line each."""

import csv
import hashlib
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from search_spaces.errors import RequestError

HEAD = ("split", "class", "file", "bytes", "sha256")
SPLITS = ("train", "val")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Row(NamedTuple):
    """One file: ``split`` is ``train`` or ``val``, ``file`` its path below its class."""

    split: str
    folder: str
    file: str
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        return f"{self.folder}/{self.file}"

    @property
    def path(self) -> str:
        return f"{self.split}/{self.name}"


def row_of(split: str, name: str, data: bytes) -> Row:
    """The row of a file's content."""
    folder, _, file = name.partition("/")
    return Row(split, folder, file, len(data), hashlib.sha256(data).hexdigest())


def to_csv(rows: Iterable[Row], *, head: bool = True) -> str:
    """The rows sorted by split, class and file, so that the same files make the same text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(
        [HEAD] * head + sorted(rows, key=lambda row: (row.split, row.folder, row.file.split("/")))
    )
    return text.getvalue()


def from_csv(file: Path) -> list[Row]:
    """The rows of a ``files.csv``.

    Raises:
        RequestError: it is not there, or is no such list.
    """
    try:
        lines = list(csv.reader(io.StringIO(file.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"list {str(file)!r} cannot be read: {error}") from error
    rows = [_row(line) for line in lines[1:]]
    if not lines or tuple(lines[0]) != HEAD or not rows or None in rows:
        wrong = (
            "1"
            if not lines or tuple(lines[0]) != HEAD
            else str(rows.index(None) + 2 if None in rows else 2)
        )
        raise RequestError(
            f"{str(file)!r} is no list of files (line {wrong}): it must have the columns {','.join(HEAD)}"
        )
    return [row for row in rows if row]


def whole_rows(text: str) -> list[Row]:
    """The rows of a list without its first line that may end in the middle of a line."""
    lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))
    return [row for line in lines if (row := _row(line))]


def _row(line: list[str]) -> Row | None:
    if (
        len(line) != len(HEAD)
        or line[0] not in SPLITS
        or not line[3].isdecimal()
        or not _SHA256.fullmatch(line[4])
    ):
        return None
    return Row(line[0], line[1], line[2], int(line[3]), line[4])
