"""Rows of Parquet shards: labels, paths and sizes without reading an image, and images by row.

Called by ``ParquetData``.
"""

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
from trainables.data.ignored import HIDDEN_FILE, IgnoredCounter, IgnoredFiles
from trainables.data.sources.image_files import is_hidden

# Row groups in the cache of each process.
MAX_CACHED_GROUPS = 2
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
    """The shards of a split.

    Attributes:
        files: the shards.
        groups: (shard, row group in the shard) of each row group, over all shards.
        starts: int64 (groups + 1,), the first row of each row group, then the number of rows.
        column: the column of the encoded bytes.
        mean_bytes: int64 (groups,), mean size of an image of each row group.
        compressed: int64 (groups,), size of each row group in the file.
        rows: int64 (n,), the number of each row whose path is not hidden, over all shards.
        paths: the path of each of these rows, or None.
        labels: the label of each of these rows.
        label_names: the hub's names of the class numbers in each shard, or None.
        ignored: the rows with hidden paths.
    """

    files: Sequence[Path]
    groups: Sequence[tuple[int, int]]
    starts: np.ndarray
    column: str
    mean_bytes: np.ndarray
    compressed: np.ndarray
    rows: np.ndarray
    paths: Sequence[str | None]
    labels: Sequence[int | str]
    label_names: Sequence[list[str] | None]
    ignored: Sequence[IgnoredFiles]

    @property
    def suffix(self) -> str:
        """The file suffix for images without names, detected from the first image."""
        first = RowGroups(self, np.zeros(1, dtype=np.int64)).read(0)
        return next((suffix for magic, suffix in SUFFIXES if first.startswith(magic)), ".jpg")


def scan_shards(files: Sequence[Path], image: str, label: str) -> Shards:
    """Read labels, paths and sizes of all rows, but no image.

    Raises:
        RequestError: A shard is damaged, its columns are not images and labels, or the shards have
            labels of different types.
    """
    import pyarrow as pa
    from pyarrow import parquet

    groups, rows, sizes, compressed, paths, labels = [], [], [], [], [], []
    column, names, kinds = image, [], []
    for number, file in enumerate(files):
        try:
            with parquet.ParquetFile(file) as shard:
                column, path = _columns(file, shard.schema_arrow, image, label)
                names.append(_label_names(shard.schema_arrow.metadata, label))
                kinds.append(pa.types.is_integer(shard.schema_arrow.field(label).type))
                table = shard.read(columns=[label, *path], use_threads=False)
                for group in range(shard.num_row_groups):
                    metadata = shard.metadata.row_group(group)
                    chunks = (metadata.column(i) for i in range(metadata.num_columns))
                    chunk = next(chunk for chunk in chunks if chunk.path_in_schema == column)
                    groups.append((number, group))
                    rows.append(metadata.num_rows)
                    sizes.append(chunk.total_uncompressed_size // max(metadata.num_rows, 1))
                    compressed.append(chunk.total_compressed_size)
        except (pa.ArrowException, OSError) as error:
            raise RequestError(
                f"{str(file)!r} is not a Parquet file, or is damaged ({error}): download it again"
            ) from error
        if kinds[0] != kinds[-1]:
            raise RequestError(
                f"column {label!r} has numbers in one of {str(files[0])!r} and {file.name!r} and "
                "text in the other: use the shards of one upload"
            )
        if table[label].null_count:
            raise RequestError(
                f"{table[label].null_count} rows of {str(file)!r} have no {label}: "
                "every image needs one"
            )
        labels += table[label].to_pylist()
        paths += (
            [value and value["path"] for value in table[image].to_pylist()]
            if path
            else [None] * len(table)
        )
    starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
    ignored = IgnoredCounter()
    visible = []
    for row, path in enumerate(paths):
        # Paths may be absolute, below hidden folders of the machine that made the shards.
        if path and is_hidden(path.rpartition("/")[2]):
            ignored.add(HIDDEN_FILE, path)
        else:
            visible.append(row)
    if not visible:
        raise RequestError(f"{str(files[0])!r} and the other shards of its split hold no images")
    return Shards(
        files,
        groups,
        starts,
        column,
        _int64(sizes),
        _int64(compressed),
        _int64(visible),
        [paths[row] for row in visible],
        [labels[row] for row in visible],
        names,
        ignored.files,
    )


def _int64(values: Sequence[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def _columns(file: Path, schema: Any, image: str, label: str) -> tuple[str, list[str]]:
    """Return the column of the bytes, and the columns of the path (one or none).

    Raises:
        RequestError: A column is missing or has the wrong type.
    """
    import pyarrow as pa

    for setting, name in (("image", image), ("label", label)):
        if name not in schema.names:
            raise RequestError(
                f"{str(file)!r} has no column {name!r}: "
                f"set data.{setting} to one of {', '.join(schema.names)}"
            )
    kind = schema.field(label).type
    if not (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ):
        raise RequestError(
            f"column {label!r} of {str(file)!r}: expected class numbers or names, got {kind}: "
            "set data.label to another column"
        )
    kind = schema.field(image).type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return image, []
    fields = [field.name for field in kind] if pa.types.is_struct(kind) else []
    if "bytes" not in fields:
        raise RequestError(
            f"column {image!r} of {str(file)!r}: expected encoded images, got {kind}: "
            "set data.image to another column"
        )
    return f"{image}.bytes", [f"{image}.path"] if "path" in fields else []


def _label_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    try:
        return json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None


class RowGroups:
    """Reads encoded images by index; picklable.

    Each process caches the last row groups that it read.
    """

    def __init__(self, shards: Shards, rows: np.ndarray) -> None:
        self._files, self._groups, self._starts, self._column = (
            shards.files,
            shards.groups,
            shards.starts,
            shards.column,
        )
        self._rows = rows
        # Process id, lock, and the row groups by number.
        self._cache: tuple[int, threading.Lock, OrderedDict[int, Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_cache": None}

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
        # A forked process creates its own lock: a thread of the parent may have held the inherited
        # one, and that thread does not exist in the child.
        if self._cache is None or self._cache[0] != os.getpid():
            self._cache = (os.getpid(), threading.Lock(), OrderedDict())
        _, lock, cached = self._cache
        with lock:
            if group not in cached:
                cached[group] = self._load(group)
            cached.move_to_end(group)
            while len(cached) > MAX_CACHED_GROUPS:
                cached.popitem(last=False)
            return cached[group]

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
