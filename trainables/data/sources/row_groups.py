"""Rows of Parquet shards: what is known of them without reading an image, and images by row."""

import errno
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search_spaces.errors import RequestError

# Row groups in memory at a time, in each process.
KEPT = 2
SUFFIXES = (
    (b"\xff\xd8", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"RIFF", ".webp"),
    (b"BM", ".bmp"),
    (b"II*", ".tif"),
    (b"MM\0*", ".tif"),
)


@dataclass(frozen=True)
class Shards:
    """A split's shards.

    Attributes:
        files: the shards; groups: (shard, row group in it) of each row group, all shards' in a row.
        starts: the first row of each row group, and last the number of rows, int64 (groups + 1,).
        column: where the encoded bytes are.
        mean_bytes, compressed: bytes an image, and bytes in the file, of each row group, int64 (groups,).
        paths, labels: of every row; a path may be missing.
        label_names: the hub's names of the class numbers, if it has any.
    """

    files: Sequence[Path]
    groups: Sequence[tuple[int, int]]
    starts: np.ndarray
    column: str
    mean_bytes: np.ndarray
    compressed: np.ndarray
    paths: Sequence[str | None]
    labels: Sequence[int | str]
    label_names: list[str] | None

    @property
    def suffix(self) -> str:
        """A file ending for images without names: the first one's."""
        first = RowGroups(self, np.zeros(1, dtype=np.int64)).read(0)
        return next((suffix for magic, suffix in SUFFIXES if first.startswith(magic)), ".jpg")


def listed(files: Sequence[Path], image: str, label: str) -> Shards:
    """Labels, paths and sizes of all rows; no image is read.

    Raises:
        RequestError: a shard is damaged, or its columns are no images and labels.
    """
    import pyarrow as pa
    from pyarrow import parquet

    groups, rows, sizes, compressed, paths, labels, column, names = (
        [],
        [],
        [],
        [],
        [],
        [],
        image,
        None,
    )
    for number, file in enumerate(files):
        try:
            with parquet.ParquetFile(file) as shard:
                column, path = _columns(file, shard.schema_arrow, image, label)
                names = names or _label_names(shard.schema_arrow.metadata, label)
                table = shard.read(columns=[label, *path], use_threads=False)
                for group in range(shard.num_row_groups):
                    about = shard.metadata.row_group(group)
                    chunks = (about.column(i) for i in range(about.num_columns))
                    chunk = next(chunk for chunk in chunks if chunk.path_in_schema == column)
                    groups.append((number, group))
                    rows.append(about.num_rows)
                    sizes.append(chunk.total_uncompressed_size // max(about.num_rows, 1))
                    compressed.append(chunk.total_compressed_size)
        except (pa.ArrowException, OSError) as error:
            raise RequestError(
                f"{str(file)!r} is no Parquet file, or a damaged one: fetch it again ({error})"
            ) from error
        if table[label].null_count:
            raise RequestError(
                f"{table[label].null_count} rows of {str(file)!r} have no {label}: every image needs one"
            )
        labels += table[label].to_pylist()
        paths += (
            [value and value["path"] for value in table[image].to_pylist()]
            if path
            else [None] * len(table)
        )
    if not labels:
        raise RequestError(f"{str(files[0])!r} and the shards beside it hold no images")
    starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
    return Shards(
        files, groups, starts, column, _int64(sizes), _int64(compressed), paths, labels, names
    )


def _int64(values: Sequence[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def _columns(file: Path, schema: Any, image: str, label: str) -> tuple[str, list[str]]:
    """Where the bytes are, and where the path is, if there is one."""
    import pyarrow as pa

    for setting, name in (("image", image), ("label", label)):
        if name not in schema.names:
            raise RequestError(
                f"{str(file)!r} has no column {name!r}: set data.{setting} to one of {', '.join(schema.names)}"
            )
    kind = schema.field(label).type
    if not (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ):
        raise RequestError(
            f"column {label!r} of {str(file)!r} is {kind}, no class number or name: set data.label to another"
        )
    kind = schema.field(image).type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return image, []
    fields = [field.name for field in kind] if pa.types.is_struct(kind) else []
    if "bytes" not in fields:
        raise RequestError(
            f"column {image!r} of {str(file)!r} is {kind}, no encoded images: set data.image to another"
        )
    return f"{image}.bytes", [f"{image}.path"] if "path" in fields else []


def _label_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    try:
        return json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None


class RowGroups:
    """Encoded images by number; picklable, with the last row groups of each process in memory."""

    def __init__(self, shards: Shards, rows: np.ndarray) -> None:
        self._files, self._groups, self._starts, self._column = (
            shards.files,
            shards.groups,
            shards.starts,
            shards.column,
        )
        self._rows = rows
        self._mine: tuple[int, threading.Lock, OrderedDict[int, Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_mine": None}

    def read(self, index: int) -> bytes:
        group, row = self._find(index)
        value = self._group(group)[row].as_py()
        value = value["bytes"] if isinstance(value, dict) else value
        if value is None:
            raise FileNotFoundError(errno.ENOENT, "the row has no bytes", self.place(index))
        return value

    def place(self, index: int) -> str:
        group, row = self._find(index)
        file, inner = self._groups[group]
        return f"{self._files[file]} row group {inner} row {row}"

    def _find(self, index: int) -> tuple[int, int]:
        row = self._rows[index]
        group = int(np.searchsorted(self._starts, row, "right")) - 1
        return group, int(row - self._starts[group])

    def _group(self, group: int) -> Any:
        # A forked process takes a lock of its own: a thread that held the other is not there to let it go.
        if self._mine is None or self._mine[0] != os.getpid():
            self._mine = (os.getpid(), threading.Lock(), OrderedDict())
        _, lock, kept = self._mine
        with lock:
            if group not in kept:
                kept[group] = self._load(group)
            kept.move_to_end(group)
            while len(kept) > KEPT:
                kept.popitem(last=False)
            return kept[group]

    def _load(self, group: int) -> Any:
        import pyarrow as pa
        from pyarrow import parquet

        file, inner = self._groups[group]
        try:
            with parquet.ParquetFile(self._files[file]) as shard:
                return shard.read_row_group(
                    inner, columns=[self._column], use_threads=False
                ).column(0)
        except pa.ArrowException as error:
            raise OSError(
                errno.EIO, f"damaged row group {inner}: {error}", str(self._files[file])
            ) from error
