"""Lists of the files of a set with their digests: one line ``split,class,file,bytes,sha256`` each.

Called by the build and the selection of a subset.
"""

import csv
import hashlib
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from search_spaces.errors import RequestError

COLUMNS = ("split", "class", "file", "bytes", "sha256")
SPLITS = ("train", "val")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Row(NamedTuple):
    """The row of a file.

    Attributes:
        split: ``train`` or ``val``.
        folder: the class.
        file: the path below the folder of the class.
        bytes: size of the file.
        sha256: digest of the content, in hexadecimal.
    """

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
    """Return the row of a file with the name ``class/file`` and the content ``data``."""
    folder, _, file = name.partition("/")
    return Row(split, folder, file, len(data), hashlib.sha256(data).hexdigest())


def to_csv(rows: Iterable[Row], *, head: bool = True) -> str:
    """Return the rows as CSV, sorted by split, class and file.

    The same files give the same text.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(
        [COLUMNS] * head
        + sorted(rows, key=lambda row: (row.split, row.folder, row.file.split("/")))
    )
    return text.getvalue()


def from_csv(file: Path) -> list[Row]:
    """Read the rows of a ``files.csv``.

    Raises:
        RequestError: The file cannot be read, or is not such a list.
    """
    try:
        lines = list(csv.reader(io.StringIO(file.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"list {str(file)!r} cannot be read: {error}") from error
    rows = [_row(line) for line in lines[1:]]
    line = None
    if not lines or tuple(lines[0]) != COLUMNS:
        line = 1
    elif not rows or None in rows:
        line = rows.index(None) + 2 if rows else 2
    if line is not None:
        raise RequestError(
            f"{str(file)!r} is not a list of files (line {line}): "
            f"expected the columns {','.join(COLUMNS)}"
        )
    return [row for row in rows if row]


def complete_rows(text: str) -> list[Row]:
    """Return the rows of a list without a header; a truncated last line is ignored."""
    lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))
    return [row for line in lines if (row := _row(line))]


def _row(line: list[str]) -> Row | None:
    if (
        len(line) != len(COLUMNS)
        or line[0] not in SPLITS
        or not line[3].isdecimal()
        or not _SHA256.fullmatch(line[4])
    ):
        return None
    return Row(line[0], line[1], line[2], int(line[3]), line[4])
